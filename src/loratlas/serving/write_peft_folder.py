"""Changes as a folder in PEFT's format, in the form that one engine reads right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.adapters.stored.read_adapter import MARKER, PREFIX, WEIGHTS
from loratlas.files import write_json
from loratlas.serving.adapter_header import EMBEDDING, EXPERTS
from loratlas.serving.updates import Updates

if TYPE_CHECKING:
    import torch

_DROPPED = (
    "eva_config",
    "corda_config",
    "loftq_config",
    "lora_ga_config",
    "layers_to_transform",
    "layers_pattern",
)


def folder_tensors(updates: Updates, alpha: int) -> dict[str, torch.Tensor]:
    """Tensors by PEFT's names, such that α over each one's own rank gives the change.

    Args:
        updates: of an adapter.
        alpha: of the config.
    """
    tensors: dict[str, torch.Tensor] = {}
    for site in updates.sites:
        stem, A, B = f"{PREFIX}{site.module}", site.A, site.B * (site.rank / alpha)
        if site.kind == EMBEDDING:
            tensors[f"{stem}.lora_embedding_A"] = A.contiguous()
            tensors[f"{stem}.lora_embedding_B"] = B.contiguous()
            continue
        if site.kind == EXPERTS:
            # PEFT nests its wrappers: the parameter that is registered first lies innermost.
            inner = site.parameter == "gate_up_proj" and any(
                other.module == site.module and other.parameter == "down_proj" for other in updates.sites
            )
            stem += ".base_layer" if inner else ""
            A = A.reshape(-1, A.shape[-1])
            B = B.permute(1, 2, 0).reshape(B.shape[1], -1)
        tensors[f"{stem}.lora_A.weight"] = A.contiguous()
        tensors[f"{stem}.lora_B.weight"] = B.contiguous()
    return {**tensors, **updates.whole}


def folder_config(updates: Updates, alpha: int) -> dict[str, Any]:
    """``adapter_config.json`` of such a folder: full names, a whole α, a pattern only where ranks differ.

    Args:
        updates: of an adapter.
        alpha: of the config; its ``r`` is the largest rank.
    """
    modules = [site.module for site in updates.sites if site.kind != EXPERTS]
    parameters = [f"{site.module}.{site.parameter}" for site in updates.sites if site.kind == EXPERTS]
    names = {
        id(site): f"{site.module}.{site.parameter}" if site.kind == EXPERTS else site.module
        for site in updates.sites
    }
    ranks = {
        f"^{_escaped(names[id(site)])}$": site.rank for site in updates.sites if site.rank != updates.rank
    }
    kept = {key: value for key, value in updates.config.items() if key not in _DROPPED}
    return {
        **kept,
        "r": updates.rank,
        "lora_alpha": alpha,
        "target_modules": modules,
        "target_parameters": parameters or None,
        "exclude_modules": None,
        "rank_pattern": ranks,
        "alpha_pattern": {},
        "use_rslora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def write_peft_folder(updates: Updates, folder: Path, *, alpha: int | None = None) -> None:
    """Write both files into a folder that is there.

    Args:
        updates: of an adapter; one rank, or each its own.
        folder: a draft that is not in use yet.
        alpha: of the config; the largest rank unless given.
    """
    from safetensors.torch import save_file

    alpha = updates.rank if alpha is None else alpha
    tensors = folder_tensors(updates, alpha)
    save_file(_separate(tensors), folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / MARKER, folder_config(updates, alpha))


def _separate(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Halves of one factor share their numbers; the format wants each tensor with its own."""
    seen: set[int] = set()
    done = {}
    for name, tensor in tensors.items():
        done[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return done


def _escaped(name: str) -> str:
    import re

    return re.escape(name)
