"""From an adapter's changes to the form that an engine reads right: experts apart, groups whole, one rank."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from loratlas.errors import ModelError
from loratlas.serving.cut_ranks import cut_to, lost_at, smallest_rank
from loratlas.serving.engine import Engine
from loratlas.serving.expert_pairs import per_expert
from loratlas.serving.fill_zeros import filled
from loratlas.serving.updates import SiteUpdate, Updates

BYTES = 4
"""Of a number in the files that are written."""


@dataclass(frozen=True, kw_only=True)
class EngineShape:
    """Changes in the form of an engine, and what that costs.

    Args:
        updates: what is to be written.
        lost: largest share of a site's change (Frobenius norm) that cutting ranks has lost; 0 without it.
        bytes: of the factors that are written.
        padding_bytes: how many of them are zeros that the engine wants.
        cheaper: a sentence about the next smaller rank; None where there is none.
    """

    updates: Updates
    lost: float
    bytes: int
    padding_bytes: int
    cheaper: str | None = None


def shaped(
    updates: Updates,
    engine: Engine,
    model_type: str,
    shapes: Mapping[str, tuple[int, int]],
    *,
    tolerance: float | None = None,
) -> EngineShape:
    """Bring changes into an engine's form.

    Args:
        updates: of an adapter.
        engine: that is to serve it.
        model_type: of the base.
        shapes: of the base's matrices, of :func:`loratlas.serving.fill_zeros.matrix_shapes`.
        tolerance: largest share of a site's change that cutting its rank may lose; None cuts nothing.

    Returns:
        The changes, each with PEFT's effect up to what was cut, and the size of the padding.

    Raises:
        ModelError: DoRA where the engine has none; a rank above the engine's limit.
    """
    form = engine.form(model_type)
    if updates.dora and not form.keeps_dora:
        raise ModelError(
            given=f"a DoRA adapter for {engine.title}",
            found="a change of every row's length, which no factors of low rank can hold and which it does not compute",
            instead="--for merged",
        )
    sites = updates.sites
    wanted, own = sum(site.parameters for site in sites), sites
    if form.experts == "each":
        sites = per_expert(sites, model_type)
    sites = filled(sites, form, shapes)
    limit = engine.rank_for(max(site.rank for site in sites))
    lost = 0.0
    if tolerance is not None:
        rank, lost = smallest_rank(sites, tolerance, engine.rank_for)
        if engine.rank_for(rank) is not None:
            sites, limit = tuple(cut_to(site, rank)[0] for site in sites), rank
    if limit is None:
        raise _too_large(sites, engine)
    cheaper = None
    if form.one_rank:
        cheaper = _cheaper(own, limit, engine, updates)
        sites = tuple(site.padded(limit) if site.rank < limit else site for site in sites)
    written = sum(site.parameters for site in sites)
    return EngineShape(
        updates=replace(updates, sites=sites),
        lost=lost,
        bytes=BYTES * written,
        padding_bytes=BYTES * max(0, written - wanted),
        cheaper=cheaper,
    )


def _cheaper(sites: tuple[SiteUpdate, ...], rank: int, engine: Engine, updates: Updates) -> str | None:
    """What the next smaller rank would lose, where ranks differ or padding adds to them."""
    smaller = [
        fits
        for k in sorted({site.rank for site in sites} | {rank // 2})
        if k and (fits := engine.rank_for(k)) is not None and fits < rank
    ]
    if updates.dora or not smaller or all(site.rank == rank for site in sites):
        return None
    next_rank = max(smaller)
    lost = lost_at(sites, next_rank)
    return (
        f"Rank {next_rank} would take {next_rank / rank:.0%} of the size and lose at most {lost:.1%} of a site's "
        f"change: --rank-tolerance {_rounded_up(lost)}."
    )


def _too_large(sites: tuple[SiteUpdate, ...], engine: Engine) -> ModelError:
    largest = max(site.rank for site in sites)
    fits = max(r for k in range(1, largest) if (r := engine.rank_for(k)) is not None)
    return ModelError(
        given=f"an adapter of rank {largest} for {engine.title}",
        found=f"the largest rank that it serves is {fits}",
        instead=f"--rank-tolerance {_rounded_up(lost_at(sites, fits))}, which cuts larger ranks by their singular "
        "values",
    )


def _rounded_up(share: float) -> str:
    return f"{min(1.0, math.ceil(share * 1000 + 1e-6) / 1000):g}"
