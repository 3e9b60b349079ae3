"""Adapters that do nothing, where an engine wants one: for fused groups and for kinds of matrix in every layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from loratlas.serving.adapter_header import LINEAR
from loratlas.serving.engine import Form
from loratlas.serving.updates import SiteUpdate

if TYPE_CHECKING:
    import torch

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def filled(
    sites: Iterable[SiteUpdate], form: Form, shapes: Mapping[str, tuple[int, int]]
) -> tuple[SiteUpdate, ...]:
    """Add what is missing, as factors of rank 1 that are zero.

    Args:
        sites: of an adapter.
        form: of an engine; its ``groups`` and ``all_layers`` are obeyed.
        shapes: of the base's matrices by module name, (d_out, d_in).

    Returns:
        The sites and the added ones, those of one layer together.
    """
    sites = tuple(sites)
    modules = {site.module for site in sites}
    wanted = dict.fromkeys(site.module for site in sites)
    for site in sites:
        if site.kind != LINEAR:
            continue
        parent, _, leaf = site.module.rpartition(".")
        for group in form.groups:
            if leaf in group:
                wanted |= dict.fromkeys(f"{parent}.{other}" for other in group)
    if form.all_layers:
        kinds = {_kind(name) for name in wanted}
        wanted |= dict.fromkeys(name for name in shapes if _kind(name) in kinds)
    added = {name: _zero(name, shapes[name]) for name in wanted if name not in modules and name in shapes}
    order = {name: index for index, name in enumerate(shapes)}
    both = [*sites, *added.values()]
    return tuple(sorted(both, key=lambda site: order.get(site.module, len(order)))) if added else tuple(both)


def matrix_shapes(model: Any) -> dict[str, tuple[int, int]]:
    """Shapes (d_out, d_in) of a model's linear modules, by name.

    Args:
        model: a transformers model, on the meta device or not.
    """
    from transformers.pytorch_utils import Conv1D

    shapes = {}
    for name, module in model.named_modules():
        weight: torch.Tensor | None = getattr(module, "weight", None)
        if weight is None or weight.ndim != 2 or type(module).__name__ == "Embedding":
            continue
        rows, columns = weight.shape
        shapes[name] = (columns, rows) if isinstance(module, Conv1D) else (rows, columns)
    return shapes


def _kind(name: str) -> str:
    return _NUMBER.sub("*", name)


def _zero(name: str, shape: tuple[int, int]) -> SiteUpdate:
    import torch

    d_out, d_in = shape
    return SiteUpdate(module=name, A=torch.zeros(1, d_in), B=torch.zeros(d_out, 1))
