"""`train --placement auto`: the run places its adapters itself, in its own first steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from loratlas.api.listener import Listener
from loratlas.dynamic.decision_schedule import DecisionSchedule
from loratlas.dynamic.policies.known_policies import DEFAULT, policy_named
from loratlas.errors import SettingsError

if TYPE_CHECKING:
    from loratlas.anatomy.sites import Anatomy
    from loratlas.dynamic.controller import PlacementController
    from loratlas.placement.budget import Memory
    from loratlas.placement.plan import Plan
    from loratlas.training.settings import Settings


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


def check_moving(moving: Moving, settings: Settings) -> None:
    """Refuse what a run with moves cannot do, before anything is read.

    Raises:
        SettingsError: an unknown policy, a head longer than the run, an initialisation whose ranks cannot change.
    """
    from loratlas.adapters.attach import takes_from_base

    schedule = moving.schedule
    if settings.steps is not None:
        schedule.steps(settings.steps)
    if takes_from_base(settings.init):
        raise SettingsError(
            given=f"--init {settings.init} with --placement auto",
            found="adapters that took a part of the base's weights along, whose ranks cannot change",
            instead="no --init, or a placement in words, such as --placement all:8",
        )


def start_plan(
    moving: Moving,
    anatomy: Anatomy,
    *,
    budget: str | None,
    alpha: float | None,
    rslora: bool,
    allow_unresolved: bool,
    memory: Memory | None,
) -> Plan:
    """The plan that a run with moves begins with: `all`, at ranks that use the budget, or its peak.

    Args:
        moving: decides the peak.
        anatomy: of the model.
        budget: at the end; None for what `all` without a rank has.
        alpha, rslora, allow_unresolved, memory: as for `loratlas.placement.plan.place`.
    """
    from loratlas.placement.plan import place
    from loratlas.scan.plan_from_scores import LIKE

    options: dict[str, Any] = {
        "alpha": alpha,
        "rslora": rslora,
        "allow_unresolved": allow_unresolved,
        "memory": memory,
    }
    plan = place(anatomy, "all", budget=budget or LIKE, **options)
    peak = moving.schedule.peak
    return (
        plan if peak == 1 else place(anatomy, "all", budget=f"params={int(peak * plan.trainable)}", **options)
    )


def controller(
    moving: Moving, plan: Plan, base: Any, *, steps: int, listener: Listener
) -> PlacementController:
    """What moves adapters in the run.

    Args:
        moving: how. plan: that the run begins with.
        base: the bare model, or its config.
        steps: of the run.
        listener: hears of decisions.

    Raises:
        SettingsError: no site whose rank can change; a schedule that does not fit the run.
    """
    from loratlas.adapters.peft_targets import renamed_leaves
    from loratlas.dynamic.controller import PlacementController
    from loratlas.scan.advice import auto_record

    fixed = renamed_leaves(base)
    rows = [
        row
        for row in plan.rows
        if row.site.kind in ("linear", "conv1d") and row.site.module.rpartition(".")[2] not in fixed
    ]
    schedule = moving.schedule
    hook = PlacementController(
        [row.site for row in rows],
        policy_named(moving.signal),
        budget=int(sum(row.trainable for row in rows) / schedule.peak),
        schedule=schedule,
        on_decision=lambda decision: listener.note(f"placement, {decision.sentence()}"),
    )
    hook.check(steps)
    due = schedule.steps(steps)
    times = f"after {due[0]} of {steps} steps" + (f", and {len(due) - 1} times later" if due[1:] else "")
    listener.note(
        f"auto: the run begins with {plan.trainable:,} parameters at {len(plan.rows)} sites and decides {times} by "
        f"{moving.signal or DEFAULT} which ranks move; no step is added"
    )
    if moving.signal in (None, DEFAULT):
        listener.note(auto_record())
    return hook


def moved_plan(plan: Plan, anatomy: Anatomy, hook: PlacementController, model: Any) -> Plan:
    """The plan that a run has ended with: its sites and ranks, each with the scale that it had from the start.

    Args:
        plan: that it began with. anatomy: of the model. hook: that moved. model: the trained `PeftModel`.
    """
    from loratlas.placement.plan import place

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
