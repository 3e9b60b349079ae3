"""Changes in MLX-LM's own format: exact names, one rank, one scale, factors transposed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from loratlas.errors import ModelError
from loratlas.files import write_json
from loratlas.serving.adapter_header import EMBEDDING, EXPERTS
from loratlas.serving.engines.mlx_engine import ALIKE
from loratlas.serving.updates import SiteUpdate, Updates

if TYPE_CHECKING:
    import torch

_SWITCH = {
    "mixtral": ".block_sparse_moe.switch_mlp",
    "qwen3_moe": ".mlp.switch_mlp",
    "olmoe": ".mlp.switch_mlp",
}
_LEAVES = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def mlx_tensors(updates: Updates, model_type: str, *, tied: bool) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Module, word (``lora_a``, ``lora_b``, ``m``) and numbers of everything in the file.

    Args:
        updates: of an adapter, of one rank.
        model_type: of the base.
        tied: whether embedding and head are one matrix.

    Raises:
        ModelError: a type or a site that MLX-LM calls something else.
    """
    if model_type not in ALIKE:
        raise ModelError(
            given=f"a base of type {model_type or 'unknown'!r} for MLX-LM",
            found="modules whose names in MLX-LM are not known here",
            instead="--for merged",
        )
    for site in updates.sites:
        if tied and (site.kind == EMBEDDING or site.leaf == "lm_head"):
            raise ModelError(
                given=site.module[:200],
                found="embedding and head are one matrix in MLX-LM, and only one of the two is adapted",
                instead="--for merged, or a placement without it",
            )
        if site.kind == EXPERTS:
            yield from _experts(site, model_type)
        else:
            # x A B, where PEFT has B A x; of an embedding the rows of A are looked up.
            yield site.module, "lora_a", site.A.t()
            yield site.module, "lora_b", site.B.t()
            if site.magnitude is not None:
                yield site.module, "m", site.magnitude


def write_mlx(updates: Updates, model_type: str, folder: Path, *, tied: bool) -> None:
    """Write ``adapters.safetensors`` and its ``adapter_config.json``.

    Args:
        updates: of an adapter, of one rank.
        model_type: of the base.
        folder: that is there.
        tied: whether embedding and head are one matrix.

    Raises:
        ModelError: see :func:`mlx_tensors`; a DoRA adapter of which some sites have no magnitude.
    """
    from safetensors.torch import save_file

    tensors, keys = {}, {}
    for module, word, tensor in mlx_tensors(updates, model_type, tied=tied):
        tensors[f"{module}.{word}"] = tensor.contiguous().clone()
        keys[module] = None
    if updates.dora and any(site.magnitude is None for site in updates.sites):
        raise ModelError(
            given="an adapter of which some sites are DoRA",
            found="MLX-LM computes DoRA at all sites or at none",
            instead="--for merged",
        )
    save_file(tensors, folder / "adapters.safetensors", metadata={"format": "mlx"})
    write_json(
        folder / "adapter_config.json",
        {
            "fine_tune_type": "dora" if updates.dora else "lora",
            # Names are whole, so that the number of layers, which counts from the end, selects nothing more.
            "num_layers": 0,
            "lora_parameters": {"rank": updates.rank, "scale": 1.0, "dropout": 0.0, "keys": list(keys)},
        },
    )


def _experts(site: SiteUpdate, model_type: str) -> Iterator[tuple[str, str, torch.Tensor]]:
    leaves = _LEAVES.get(site.parameter)
    if leaves is None or model_type not in _SWITCH:
        raise ModelError(
            given=f"{site.module}.{site.parameter}"[:200],
            found="a stack of experts whose name in MLX-LM is not known here",
            instead="--for merged",
        )
    module = site.module.replace(".mlp.experts", _SWITCH[model_type])
    for leaf, B in zip(leaves, site.B.chunk(len(leaves), dim=1), strict=True):
        yield f"{module}.{leaf}", "lora_a", site.A
        yield f"{module}.{leaf}", "lora_b", B
