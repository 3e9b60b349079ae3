"""This project's own loop, as a user calls it."""

from __future__ import annotations

from typing import Any

from benchmarks.common.timing import Clock, Sample
from benchmarks.peers.outcome import Outcome, Schedule, Tape
from loratlas.data.examples import Encoded
from loratlas.training.loop import fit
from loratlas.training.run_events import StepEvent
from loratlas.training.settings import Settings


def settings(schedule: Schedule, *, dtype: str, steps: int, compiled: bool = False) -> Settings:
    """The schedule that all sides share, in this project's words; all else as it comes."""
    return Settings(
        steps=steps,
        lr=schedule.lr,
        batch_size=schedule.batch,
        clip=schedule.clip,
        seed=schedule.seed,
        dropout=schedule.dropout,
        dtype=dtype,
        warmup=0.0,
        compile="on" if compiled else "off",
    )


def train(
    model: Any, data: Encoded, schedule: Schedule, *, dtype: str, steps: int, compiled: bool = False
) -> Outcome:
    """Train, and measure from the call to its return: proving that packing is exact, and all else, counts."""
    tape = Tape()
    seen = [0, 0]

    def on_step(event: StepEvent) -> None:
        tape.count(
            labelled=event.labelled_tokens - seen[0],
            tokens=event.tokens - seen[1],
            places=event.tokens - seen[1],
        )
        seen[:] = [event.labelled_tokens, event.tokens]
        tape.step()

    clock = Clock()
    fit(model, data, settings(schedule, dtype=dtype, steps=steps, compiled=compiled), on_step=on_step)
    return tape.outcome(clock.lap())


def step_time(
    model: Any,
    data: Encoded,
    schedule: Schedule,
    *,
    dtype: str,
    skip: int,
    steps: int,
    compiled: bool = False,
) -> Sample:
    """Median step of a run, the first ``skip`` left out."""
    outcome = train(model, data, schedule, dtype=dtype, steps=skip + steps, compiled=compiled)
    return Sample.middle(outcome.steps[skip:])
