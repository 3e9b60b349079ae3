"""Adapters that took their first factors out of the base, written as ordinary ones on the base as it was published.

PiSSA and OLoRA start from a part of the base, W = W' + s·B₀A₀, and train B, A on W'. On the published W their
effect is s·(BA − B₀A₀): an ordinary adapter of twice the rank, with the factors stacked. B₀ and A₀ follow from W alone,
so that they can be had again for an adapter of another tool: PEFT's own initialisation runs on a copy of each matrix.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from loratlas.adapters.peft_check import expected_warnings
from loratlas.adapters.stored.read_adapter import PREFIX, AdapterFolder
from loratlas.errors import ModelError

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig


def double_factors(
    tensors: Mapping[str, torch.Tensor], first: Mapping[str, torch.Tensor], config: LoraConfig
) -> tuple[dict[str, torch.Tensor], LoraConfig]:
    """The ordinary adapter of twice the rank.

    Args:
        tensors: by PEFT's names. What is no factor (a head, DoRA's magnitudes, a bias) stays as it is.
        first: the factors that the adapter started from, by the same names.
        config: of the adapter.

    Returns:
        Tensors, and a copy of the config that fits them.
    """
    import torch

    doubled = {}
    for name, tensor in tensors.items():
        # In float32 whatever the adapter is stored in: BA and B₀A₀ are large and almost equal.
        if name.endswith(".lora_A.weight"):
            doubled[name] = torch.cat([tensor.float(), first[name].to(tensor.device)], dim=0)
        elif name.endswith(".lora_B.weight"):
            doubled[name] = torch.cat([tensor.float(), -first[name].to(tensor.device)], dim=1)
        else:
            doubled[name] = tensor
    config = copy.deepcopy(config)
    # Twice the rank at the same scale: α/r keeps it with 2α, α/√r with √2·α.
    grown: Any = math.sqrt(2) if config.use_rslora else 2
    config.r *= 2
    config.lora_alpha *= grown
    config.rank_pattern = {key: rank * 2 for key, rank in (config.rank_pattern or {}).items()}
    config.alpha_pattern = {key: alpha * grown for key, alpha in (config.alpha_pattern or {}).items()}
    return doubled, config


REMAINDER = ".base_layer.weight"
"""Ends the name of what is left of a matrix, where an adapter stores it."""


def initial_factors(
    base_model: Any, contents: AdapterFolder, config: LoraConfig, *, remainders: bool
) -> dict[str, torch.Tensor]:
    """The factors that PEFT's initialisation takes out of this base, by the names of the adapter's tensors.

    Args:
        base_model: as it was published; not changed.
        contents: of an adapter with `AdapterFolder.changed_base`.
        config: of the adapter.
        remainders: whether what is left of a matrix, where the adapter stores it, takes the published one's place:
            nothing is to be taken out of it again then (factors of zero). Where the published one stays, its factors
            are returned.

    Raises:
        ModelError: a matrix that cannot be taken apart (quantised, a stack of experts, none at all), one from which
            PEFT takes something else than the product of the factors, or one of which something else is left than the
            adapter stores.
    """
    import torch

    first: dict[str, torch.Tensor] = {}
    names = [
        name.removesuffix(".lora_A.weight") for name in contents.tensors if name.endswith(".lora_A.weight")
    ]
    if config.target_parameters or config.layer_replication:
        raise _cannot(contents, "stacks of experts among its targets")
    tables = [
        (path, module.weight)
        for path, module in base_model.named_modules(remove_duplicate=False)
        if module in (base_model.get_input_embeddings(), base_model.get_output_embeddings())
    ]
    kept = {} if remainders else contents.read()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for name in names:
            path = name.removeprefix(PREFIX)
            stored = f"{name}{REMAINDER}" in contents.tensors
            if stored and remainders:
                # What is left of the matrix lies with the adapter and takes the published one's place.
                for kind in ("A", "B"):
                    shape = contents.tensors[f"{name}.lora_{kind}.weight"].shape
                    first[f"{name}.lora_{kind}.weight"] = torch.zeros(shape)
                continue
            try:
                module = base_model.get_submodule(path)
            except AttributeError as error:
                raise _cannot(contents, f"a base without {path[:200]}") from error
            weight = getattr(module, "weight", None)
            if weight is None or weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
                raise _cannot(contents, f"{path} quantised in this base")
            if not stored and any(weight is other and path != table for table, other in tables):
                raise _cannot(
                    contents, f"{path}, which is tied to another matrix that the part is missing from too"
                )
            factors, left = _taken_out(module, path, config, str(contents.changed_base), contents)
            if stored and not _alike(kept[f"{name}{REMAINDER}"], left, weight):
                raise _cannot(
                    contents, f"{path}, of which it stores something else than what is left of this base's"
                )
            first[f"{name}.lora_A.weight"], first[f"{name}.lora_B.weight"] = factors
    return first


def _alike(one: torch.Tensor, other: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether two changes of a matrix are the same, as far as the numbers that they are stored in go."""
    import torch

    exact = one.dtype == weight.dtype == torch.float32
    largest = float(weight.detach().float().abs().max())
    return one.shape == other.shape and torch.allclose(
        one.float(), other, rtol=0, atol=(1e-4 if exact else 2e-2) * largest
    )


def _taken_out(
    module: Any, path: str, config: LoraConfig, init: str, contents: AdapterFolder
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A₀ [r, d_in] and B₀ [d_out, r] of one matrix, and what is left of it, by PEFT's own initialisation of a copy."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from peft.utils.other import get_pattern_key

    ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
    rank = ranks.get(get_pattern_key(list(ranks), path), config.r)
    alpha = alphas.get(get_pattern_key(list(alphas), path), config.lora_alpha)
    own = copy.deepcopy(module)
    before = own.weight.detach().to(torch.float32).clone()
    alone = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        use_rslora=config.use_rslora,
        init_lora_weights=init,  # pyright: ignore[reportArgumentType]
        target_modules=["matrix"],
        fan_in_fan_out=config.fan_in_fan_out,
    )
    try:
        with expected_warnings():
            layer: Any = inject_adapter_in_model(alone, torch.nn.ModuleDict({"matrix": own})).matrix
    except (ValueError, RuntimeError, TypeError) as error:
        raise _cannot(contents, f"{path}: {str(error)[:200]}") from error
    A, B = (getattr(layer, kind)["default"].weight.detach().float() for kind in ("lora_A", "lora_B"))
    left = layer.get_base_layer().weight.detach().float()
    taken = before - left
    product = layer.scaling["default"] * (B @ A) if A.shape[1] == layer.in_features else torch.empty(0)
    product = product.t() if layer.fan_in_fan_out and product.ndim == 2 else product
    if not _alike(product, taken, module.weight):
        raise _cannot(
            contents, f"{path}, from which PEFT takes something else than the product of its factors"
        )
    return (A, B), left


def _cannot(contents: AdapterFolder, found: str) -> ModelError:
    return ModelError(
        given=str(contents.folder),
        found=f"an adapter started by {contents.changed_base}, which takes a part out of the base, and {found}",
        instead="the adapter saved again by PEFT with path_initial_model_for_weight_conversion",
    )
