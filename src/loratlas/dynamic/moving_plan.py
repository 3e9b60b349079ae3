"""A run that places its adapters itself: how, what it begins with, what moves its adapters, what it ends with."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from loratlas.adapters.peft_targets import refused_sites, renamed_leaves
from loratlas.dynamic.decision_schedule import DecisionSchedule, parse_every, parse_head
from loratlas.dynamic.policies.known_policies import policy_named
from loratlas.dynamic.run_evidence import parameters_at
from loratlas.errors import BudgetError, SettingsError
from loratlas.placement.budget import LIKE, allowance, parse_budget
from loratlas.placement.plan import Plan, place

if TYPE_CHECKING:
    from loratlas.anatomy.sites import Anatomy, Site
    from loratlas.dynamic.controller import Decision, PlacementController
    from loratlas.placement.budget import Budget, Memory

HIGHEST = 1.5
"""Parameters at the start over those at the end, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moving:
    """How a run places its adapters itself.

    Args:
        signal: name of the policy; None for the default one.
        head: steps before the first decision, a share below 1 or a count.
        every: steps between later decisions; None for one decision.
    """

    signal: str | None
    head: float
    every: int | None

    @property
    def schedule(self) -> DecisionSchedule:
        """When decisions are due."""
        return DecisionSchedule(head=self.head, every=self.every, peak=policy_named(self.signal).peak)

    @classmethod
    def read(cls, signal: str | None, head: str | float | None, decide: str | int | None) -> Moving:
        """As people write it.

        Raises:
            SettingsError: an unknown policy, a head or a schedule that is not understood.

        >>> Moving.read("energy", "10%", "every=50")
        Moving(signal='energy', head=0.1, every=50)
        """
        moving = cls(signal=signal, head=parse_head(head), every=parse_every(decide))
        policy_named(signal)
        return moving


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a run with moves begins with.

    Args:
        plan: `all`, at ranks that use the budget, or its peak.
        budget: parameters at the end.
    """

    plan: Plan
    budget: int

    @property
    def peak(self) -> float:
        """Parameters at the start over those at the end."""
        return self.plan.trainable / self.budget


def start(
    moving: Moving,
    anatomy: Anatomy,
    *,
    budget: str | None,
    alpha: float | None = None,
    rslora: bool = False,
    allow_unresolved: bool = False,
    memory: Memory | None = None,
) -> Start:
    """The plan that a run with moves begins with.

    A budget that is less than rank 1 everywhere begins with rank 1 everywhere, if that is no more than `HIGHEST` times
    the budget, and is reached by the decision.

    Args:
        moving: decides the peak.
        anatomy: of the model.
        budget: at the end; None for what `all` without a rank has.
        alpha, rslora, allow_unresolved, memory: as for `loratlas.placement.plan.place`.

    Raises:
        BudgetError: less than that, more than ranks can take, or a budget that does not parse.

    >>> from loratlas.sources import read
    >>> whole = read("demo:llama-mini")
    >>> begun = start(Moving.read(None, None, None), whole, budget="params=30k")
    >>> begun.plan.text, begun.plan.trainable, begun.budget
    ('all:1', 38912, 30000)
    """
    wanted = parse_budget(budget or LIKE)
    options: dict[str, Any] = {
        "alpha": alpha,
        "rslora": rslora,
        "allow_unresolved": allow_unresolved,
        "memory": memory,
    }
    peak = moving.schedule.peak
    # What PEFT refuses in this type of model is left out, as nobody would write it.
    without = "".join(f" - {role}" for role in _refused_roles(anatomy))
    everywhere, least_text = f"all{without}", f"all:1{without}"
    if wanted.quantity == "params":
        least, allowed = place(anatomy, least_text, **options), allowance(wanted, anatomy)
        _refuse_more(least, wanted, allowed)
        if least.trainable > allowed:
            if least.trainable > HIGHEST * allowed:
                enough = math.ceil(least.trainable / HIGHEST)
                raise BudgetError(
                    given=f"--placement auto with a budget of {wanted.text} ({allowed:,} parameters)",
                    found=f"a run begins with rank 1 at each site, which costs {least.trainable:,}, and that is more "
                    f"than {HIGHEST:g} times the budget",
                    instead=f"at least params={enough}, or a placement of fewer sites in words",
                )
            return Start(plan=replace(least, budget=wanted.text), budget=allowed)
    plan = place(anatomy, everywhere, budget=wanted, **options)
    if peak == 1:
        return Start(plan=plan, budget=plan.trainable)
    high = place(anatomy, everywhere, budget=f"params={int(peak * plan.trainable)}", **options)
    return Start(plan=high, budget=plan.trainable)


def _refused_roles(anatomy: Anatomy) -> list[str]:
    named = place(anatomy, "all:1", allow_unresolved=True).rows
    refused = refused_sites((row.site for row in named), anatomy.model_type)
    return list(dict.fromkeys(site.role for site in refused))


def _refuse_more(least: Plan, wanted: Budget, allowed: int) -> None:
    """Refuse a budget that no ranks could use.

    Args:
        least: rank 1 at each site. wanted, allowed: the budget, and its parameters.
    """
    sites = [row.site for row in least.rows]
    widest = max(site.max_rank for site in sites)
    most = parameters_at(sites, widest)
    if allowed > most:
        raise BudgetError(
            given=f"--placement auto with a budget of {wanted.text} ({allowed:,} parameters)",
            found=f"ranks up to {widest} at each of {len(sites)} sites, as far as matrices allow, which take {most:,}",
            instead=f"at most params={most}",
        )


def controller_of(
    moving: Moving,
    begun: Start,
    base: Any,
    *,
    steps: int,
    on_decision: Callable[[Decision], None] | None = None,
) -> PlacementController:
    """What moves adapters in a run.

    Args:
        moving: how. begun: with which plan, and where it ends.
        base: the bare model, or its config.
        steps: of the run.
        on_decision: hears of decisions.

    Raises:
        SettingsError: no site whose rank can change; a schedule that does not fit the run.
        BudgetError: what cannot move takes the whole budget.
    """
    from loratlas.dynamic.controller import PlacementController

    rows, kept = movable(begun.plan, base), unmovable_parameters(begun.plan, base)
    if not rows:
        raise SettingsError(
            given="--placement auto",
            found="no linear site in this model whose rank can change while it trains",
            instead="a placement in words, such as --placement all:8",
        )
    budget = begun.budget - kept
    least = min(row.site.lora_parameters(1) for row in rows)
    if budget < least:
        raise BudgetError(
            given=f"--placement auto with a budget of {begun.budget:,} parameters",
            found=f"stacks of experts, which keep their ranks, and with which {kept:,} of them are used",
            instead=f"at least params={kept + least}",
        )
    hook = PlacementController(
        [row.site for row in rows],
        policy_named(moving.signal),
        budget=budget,
        schedule=replace(moving.schedule, peak=max(1.0, min(HIGHEST, begun.peak))),
        on_decision=on_decision,
    )
    hook.check(steps)
    return hook


def movable(plan: Plan, base: Any) -> list[Any]:
    """The rows of a plan whose rank can change in a live model: linear sites that PEFT does not rename.

    Args:
        plan: of the model. base: the bare model, or its config.
    """
    fixed = renamed_leaves(base)
    return [row for row in plan.rows if can_move(row.site, fixed)]


def can_move(site: Site, fixed: Collection[str]) -> bool:
    """Whether a site's rank can change in a live model.

    Args:
        site: of the model. fixed: names that PEFT gives another, of `loratlas.adapters.peft_targets.renamed_leaves`.
    """
    return site.kind in ("linear", "conv1d") and site.module.rpartition(".")[2] not in fixed


def unmovable_parameters(plan: Plan, base: Any) -> int:
    """Parameters of a plan's other rows."""
    return plan.trainable - sum(row.trainable for row in movable(plan, base))


def moved_plan(plan: Plan, anatomy: Anatomy, hook: PlacementController, model: Any) -> Plan:
    """The plan that a run has ended with: its sites and ranks, each with the scale that it had from the start.

    Args:
        plan: that it began with. anatomy: of the model. hook: that moved. model: the trained `PeftModel`.
    """
    ranks = {row.site.path: row.rank for row in plan.rows} | hook.ranks(model)
    if ranks == plan.ranks:
        return plan
    began = {row.site.path: row for row in plan.rows}
    text = _table(anatomy, ranks)
    now = place(anatomy, text, rslora=plan.rslora, allow_unresolved=True)
    reasons = {move.path: move.reason for move in hook.moves}
    rows = tuple(
        replace(
            row, alpha=_alpha(began[row.site.path].alpha, began[row.site.path].rank, row.rank, plan.rslora)
        )
        for row in now.rows
    )
    why = tuple(reasons.get(row.site.path, "as it began") for row in rows)
    return replace(now, rows=rows, budget=plan.budget, why=why)


def _table(anatomy: Anatomy, ranks: Mapping[str, int]) -> str:
    from loratlas.placement.canonical import table_text

    return table_text(anatomy, {path: rank for path, rank in ranks.items() if rank})


def _alpha(alpha: float, before: int, after: int, rslora: bool) -> float:
    """α of the same scale at another rank."""
    return alpha * ((after / before) ** 0.5 if rslora else after / before)
