"""What `plan` says about cost: arithmetic, a rehearsed step, and seconds where this machine is calibrated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loratlas.cli import output
from loratlas.formats import data_size

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from loratlas.anatomy.sites import Anatomy
    from loratlas.cost.peak_memory import PeakMemory
    from loratlas.placement.plan import Plan
    from loratlas.training.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The step that is priced: rows of equal length, every token but the first counted.

    Args:
        config: of the base.
        anatomy: of the base.
        rows: examples per step.
        length: tokens of each.
        dtype: of the base.
    """

    config: PretrainedConfig
    anatomy: Anatomy
    rows: int
    length: int
    dtype: str

    def settings(self) -> Settings:
        """Of the run that it is a step of."""
        from loratlas.training.settings import Settings

        return Settings(batch_size=self.rows, dtype=self.dtype)

    def memory(self) -> PeakMemory:
        """The measure of a memory budget."""
        from loratlas.cost.peak_memory import PeakMemory

        return PeakMemory.of_step(self.config, self.anatomy, self.settings(), length=self.length)


def price(plan: Plan, step: Step, *, timed: bool) -> dict[str, Any]:
    """The JSON object ``cost``.

    Args:
        plan: what is priced.
        step: of which rows.
        timed: time what this machine has not timed; without, seconds are given where all is known.

    Returns:
        What arithmetic knows, what the rehearsal found and the step it is about. Of a base that cannot be rehearsed,
        None for the bytes and the seconds, and why under ``not_predicted``.

    Raises:
        ModelError: ``timed``, and the base cannot be rehearsed.
    """
    from loratlas.anatomy.flops import cost
    from loratlas.cost.dry_run import dry_run, even_rows
    from loratlas.errors import ModelError

    found: dict[str, Any] = cost(step.anatomy, plan.ranks).to_json()
    found |= {"saved_activation_bytes": None, "peak_bytes": None, "step_seconds": None}
    found |= {"batch_size": step.rows, "max_length": step.length, "dtype": step.dtype}
    try:
        rehearsed = dry_run(
            step.config, plan.rows, even_rows(step.rows, step.length), step.settings(), rslora=plan.rslora
        )
    except ModelError as error:
        if timed:
            raise
        return found | {"not_predicted": error.found}
    seconds = _seconds(rehearsed, timed=timed)
    return found | {
        "saved_activation_bytes": rehearsed.saved_bytes,
        "peak_bytes": rehearsed.peak_bytes,
        "step_seconds": seconds,
    }


def _seconds(rehearsed: Any, *, timed: bool) -> float | None:
    from loratlas.cost.calibration import Calibration

    known = Calibration()
    if timed and (missing := len(known.missing([rehearsed]))):
        output.note(f"Timing {missing} operations on this machine, once.")
        known.learn([rehearsed])
    return known.seconds(rehearsed)


def show(spent: dict[str, Any]) -> None:
    """The same as a table."""
    step = f"{spent['batch_size']} × {spent['max_length']:,} tokens, {spent['dtype']}"
    drawn = output.table(f"one training step of {step}", ("", "right"))
    drawn.add_row("arithmetic per token", f"{spent['flops_per_token'] / 1e9:,.3f} GFLOP")
    drawn.add_row("adapters", data_size(spent["adapter_bytes"]))
    drawn.add_row("optimizer (AdamW)", data_size(spent["optimizer_bytes"]))
    if spent["peak_bytes"] is not None:
        drawn.add_row("activations kept for backward", data_size(spent["saved_activation_bytes"]))
        drawn.add_row("memory at the peak", data_size(spent["peak_bytes"]))
    if spent["step_seconds"] is not None:
        drawn.add_row("time", f"{spent['step_seconds']:.3g} s")
    output.show(drawn)
    if spent["peak_bytes"] is None:
        output.say(f"Memory not predicted: {spent['not_predicted']}.")
    elif spent["step_seconds"] is None:
        output.say("Seconds per step: --time measures what this machine can do.")
