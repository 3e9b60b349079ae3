"""Which sites of a trainer's model may change rank, and how many parameters they may have at the end."""

from __future__ import annotations

from typing import Any

from loratlas.adapters.peft_targets import renamed_leaves
from loratlas.adapters.resize import ranks_of
from loratlas.anatomy.read import read
from loratlas.anatomy.sites import Anatomy, Site
from loratlas.dynamic.moving_plan import can_move
from loratlas.dynamic.run_evidence import parameters_at
from loratlas.errors import BudgetError
from loratlas.modeling import unwrap
from loratlas.placement.budget import allowance, budget_text, parse_budget
from loratlas.placement.plan import place


def movable_sites(model: Any, placement: str) -> tuple[list[Site], Anatomy]:
    """The linear sites of a placement and those that carry an adapter already, in the model's order.

    Args:
        model: a `PeftModel`. placement: in the placement language; its ranks do not matter.

    Returns:
        The sites, and the anatomy that they are of.

    Raises:
        PlacementError: the placement names nothing.
    """
    anatomy = read(unwrap(model))
    named = set(place(anatomy, placement, allow_unresolved=True).ranks)
    adapted = ranks_of(model)
    fixed = renamed_leaves(unwrap(model))
    sites = [
        site
        for site in anatomy.sites
        if can_move(site, fixed) and (site.path in named or site.module in adapted)
    ]
    return sites, anatomy


def budget_of(
    budget: str | float | None, sites: list[Site], anatomy: Anatomy, model: Any, peak: float
) -> int:
    """Parameters of these sites after the last decision.

    Args:
        budget: as it was asked for. sites: that may change. anatomy: of them. model: that trains.
        peak: parameters at the start over those at the end.

    Raises:
        BudgetError: it does not parse, is none of parameters, or ends above or below what ranks allow.
    """
    ranks = ranks_of(model)
    movable = {site.module for site in sites}
    now = sum(site.lora_parameters(ranks.get(site.module, 0)) for site in sites)
    if budget is None:
        return int(now / peak)
    text = budget_text(budget)
    assert text is not None
    parsed = parse_budget(text)
    if parsed.quantity != "params":
        raise BudgetError(
            given=f"budget={text!r} in a trainer",
            found=f"a budget of {parsed.quantity}",
            instead='budget="params=…" or budget="like=…"',
        )
    kept = sum(
        site.lora_parameters(ranks[site.module])
        for site in anatomy.sites
        if site.module in ranks and site.module not in movable
    )
    allowed = allowance(parsed, anatomy) - kept
    least = min((site.lora_parameters(1) for site in sites), default=0)
    widest = max((site.max_rank for site in sites), default=0)
    most = parameters_at(sites, widest)
    if not least <= allowed <= most:
        raise BudgetError(
            given=f"budget={text!r} ({allowed + kept:,} parameters)",
            found=f"ranks from 1 at one site to {widest} at each of {len(sites)}, as far as matrices allow, which take "
            f"{least + kept:,} to {most + kept:,}",
            instead=f'budget="params={min(max(allowed, least), most) + kept}"',
        )
    return allowed
