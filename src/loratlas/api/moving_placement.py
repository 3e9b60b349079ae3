"""`train --placement auto`: the run places its adapters itself, in its own first steps; what is refused and said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loratlas.api.listener import Listener
from loratlas.dynamic.moving_plan import Moving, Start, controller_of, unmovable_parameters
from loratlas.dynamic.policies.known_policies import DEFAULT
from loratlas.errors import SettingsError
from loratlas.training.settings import AUTO, EVA

if TYPE_CHECKING:
    from loratlas.dynamic.controller import Decision, PlacementController
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
    moving: Moving, begun: Start, base: Any, *, steps: int, init: bool | str | None, listener: Listener
) -> PlacementController:
    """What moves adapters in the run, after saying what it will do.

    Args:
        moving: how. begun: the plan that the run begins with, and its budget.
        base: the bare model, or its config.
        steps: of the run.
        init: how its adapters begin; where the run decides that, `note_record` is called when it has.
        listener: hears of decisions.

    Raises:
        SettingsError, BudgetError: as `loratlas.dynamic.moving_plan.controller_of`.
    """
    ranks = dict(begun.plan.ranks)

    def decided(decision: Decision) -> None:
        # A decision that moves nothing has its reason as its only news.
        listener.note(f"placement, {decision.line() if decision.moves else decision.sentence()}")
        before = dict(ranks)
        ranks.update({move.path: move.after for move in decision.moves})
        if decision.moves:
            listener.ranks(hook.sites, before, ranks)

    hook = controller_of(moving, begun, base, steps=steps, on_decision=decided)
    due, plan = hook.schedule.steps(steps), begun.plan
    times = f"after {due[0]} of {steps} steps" + (f", and {len(due) - 1} times later" if due[1:] else "")
    listener.note(
        f"auto: the run begins with {plan.trainable:,} parameters at {len(plan.rows)} sites and decides {times} by "
        f"{moving.signal or DEFAULT} which ranks move; no step is added"
    )
    if hook.full(plan.ranks):
        listener.note(
            "auto: every site begins with the most ranks that it can have, so that none can move; a lower --budget "
            "leaves room"
        )
    if begun.peak > 1:
        listener.note(f"auto: at most {begun.budget:,} parameters are left at the end")
    kept = unmovable_parameters(plan, base)
    if kept:
        stacks = len(plan.rows) - len(hook.sites)
        listener.note(f"auto: {stacks} sites with {kept:,} parameters keep their ranks: stacks of experts")
    if init != AUTO:
        note_record(moving, init, listener)
    return hook


def note_record(moving: Moving, init: bool | str | None, listener: Listener) -> None:
    """Say what runs that place themselves were worth where that was judged, of those that begin as this one does.

    Args:
        moving: what decides. init: how the run's adapters begin, once that is known. listener: hears it.
    """
    from loratlas.scan.advice import auto_record

    signal = moving.signal or DEFAULT
    listener.note(auto_record(None if signal == DEFAULT and init == EVA else signal))
