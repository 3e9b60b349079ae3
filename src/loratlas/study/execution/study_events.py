"""What a study reports while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from loratlas.study.execution.ledger import Key


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyEvent:
    """What happens, for a progress display.

    Args:
        kind: "scan" (a step of it; ``planned`` and ``done`` count its units), "redo" (runs whose files are broken),
            "prepared", "ready" (a worker loaded the base), "started", "step", "finished", "complete".
        planned: runs known to be needed by now (tuning may extend the grid); done: finished ones.
        phase, arm, lr, seed: of the run that the event is about.
        step, steps: of that run.
        nll: of a finished run, nats per token; None if it diverged.
        seconds_left: estimate for the whole study; None before there is anything to go by.
        message: one line in words.
    """

    kind: str
    planned: int
    done: int
    phase: str = ""
    arm: str = ""
    lr: float | None = None
    seed: int | None = None
    step: int = 0
    steps: int | None = None
    nll: float | None = None
    seconds_left: float | None = None
    message: str = ""


OnEvent = Callable[[StudyEvent], None]


def describe_run(key: Key | None) -> str:
    """A run in words; "" for none."""
    if key is None:
        return ""
    return (
        "the bare base"
        if key.phase == "base"
        else f"{key.phase} {key.arm}, lr {key.lr:g}, seed {key.seed}"
        + f", {key.steps} steps" * bool(key.steps)
    )
