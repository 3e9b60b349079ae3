"""`train --placement auto`: the run places its adapters itself, in its own first steps; what is refused and said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loratlas.api.listener import Listener
from loratlas.dynamic.moving_plan import Moving, Start, controller_of, unmovable_parameters
from loratlas.dynamic.policies.known_policies import DEFAULT
from loratlas.errors import SettingsError

if TYPE_CHECKING:
    from loratlas.dynamic.controller import PlacementController
    from loratlas.training.settings import Settings


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


def controller(
    moving: Moving, begun: Start, base: Any, *, steps: int, listener: Listener
) -> PlacementController:
    """What moves adapters in the run, after saying what it will do.

    Args:
        moving: how. begun: the plan that the run begins with, and its budget.
        base: the bare model, or its config.
        steps: of the run.
        listener: hears of decisions.

    Raises:
        SettingsError, BudgetError: as `loratlas.dynamic.moving_plan.controller_of`.
    """
    from loratlas.scan.advice import auto_record

    hook = controller_of(
        moving,
        begun,
        base,
        steps=steps,
        on_decision=lambda decision: listener.note(f"placement, {decision.line()}"),
    )
    due, plan = hook.schedule.steps(steps), begun.plan
    times = f"after {due[0]} of {steps} steps" + (f", and {len(due) - 1} times later" if due[1:] else "")
    listener.note(
        f"auto: the run begins with {plan.trainable:,} parameters at {len(plan.rows)} sites and decides {times} by "
        f"{moving.signal or DEFAULT} which ranks move; no step is added"
    )
    if begun.peak > 1:
        listener.note(f"auto: {begun.budget:,} parameters are left at the end")
    kept = unmovable_parameters(plan, base)
    if kept:
        stacks = len(plan.rows) - len(hook.sites)
        listener.note(f"auto: {stacks} sites with {kept:,} parameters keep their ranks: stacks of experts")
    if moving.signal in (None, DEFAULT):
        listener.note(auto_record())
    return hook
