"""How the rows of a fused matrix are dealt out to its parts, read off the views that were taken of its output."""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby

from loratlas.anatomy.trace.flow_records import Geometry, Labels, View, columns


def layout(parts: dict[str, Labels], *, kv_heads: int, heads: int) -> str | None:
    """How the columns of one output are dealt out to its parts; None unless each has exactly one owner.

    ``contiguous:q,k,v`` is all of q, then all of k, then all of v. ``per_head:q,k,v`` repeats q, k, v of one
    head for each head; ``per_group:q,k,v`` repeats the queries of one group, then its key, then its value;
    ``interleaved:gate,up`` alternates column by column; any other number n of repeats is ``per_chunk_n``.
    """
    widths = {
        label.origin.width for labels in parts.values() for label in labels if isinstance(label.origin, View)
    }
    if len(widths) != 1:
        return None
    dealt = _dealt(tuple((part, _columns(labels)) for part, labels in parts.items()), widths.pop())
    if dealt is None:
        return None
    order, repeats, unit = dealt
    if repeats == 1:
        return f"contiguous:{order}"
    if unit == len(parts):
        return f"interleaved:{order}"
    if repeats == kv_heads:
        return f"{'per_head' if kv_heads == heads else 'per_group'}:{order}"
    return f"per_chunk_{repeats}:{order}"


def _columns(labels: Labels) -> frozenset[int]:
    views = (label.origin for label in labels if isinstance(label.origin, View))
    return _union(frozenset((view.geometry, view.width) for view in views if view.geometry is not None))


@lru_cache(maxsize=64)
def _union(views: frozenset[tuple[Geometry, int]]) -> frozenset[int]:
    return frozenset[int]().union(*(columns(geometry, width) for geometry, width in views))


@lru_cache(maxsize=64)  # the blocks of a model look alike
def _dealt(parts: tuple[tuple[str, frozenset[int]], ...], width: int) -> tuple[str, int, int] | None:
    """Order of the parts in one unit, number of units and columns of one, if equal units make up the width."""
    owner = {column: part for part, held in parts for column in held}
    if len(owner) != width or sum(len(held) for _, held in parts) != width:
        return None
    runs = [(part, len(list(run))) for part, run in groupby(owner[column] for column in range(width))]
    unit, repeats = runs[: len(parts)], len(runs) // len(parts)
    if runs != unit * repeats or {part for part, _ in unit} != {part for part, _ in parts}:
        return None
    return ",".join(part for part, _ in unit), repeats, width // repeats
