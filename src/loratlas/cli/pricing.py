"""What `plan` says about cost: arithmetic, a dry run, and seconds where this machine is calibrated.

What a config and a plan decide is kept in the user's cache (`loratlas.result_cache`): asked again, it costs neither
torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loratlas.anatomy.anatomy_cache import config_key
from loratlas.cli import output
from loratlas.files import cache_folder, jsonable
from loratlas.formats import data_size
from loratlas.result_cache import ResultCache, machine

if TYPE_CHECKING:
    from loratlas.anatomy.sites import Anatomy
    from loratlas.cost.peak_memory import PeakMemory
    from loratlas.placement.budget import Memory
    from loratlas.placement.plan import Plan
    from loratlas.training.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The step that is priced: rows of equal length, every token but the first counted.

    Args:
        source: of the base, as `loratlas.models.config.load_config` takes it.
        anatomy: of the base.
        rows: examples per step.
        length: tokens of each.
        dtype: of the base; ``auto`` for what this machine multiplies faster.
    """

    source: str
    anatomy: Anatomy
    rows: int
    length: int
    dtype: str

    @property
    def chosen(self) -> str:
        """The type that ``dtype`` means on this machine."""
        if self.dtype != "auto":
            return self.dtype
        known = ResultCache("dtype")
        chosen = known.get(machine())
        if chosen is None:
            from loratlas.models.load import native_dtype

            chosen = native_dtype()
            known.put(machine(), chosen)
        return chosen

    def key(self, **more: Any) -> dict[str, Any] | None:
        """What the results of a dry run depend on; None for a base whose config only transformers can read."""
        config = config_key(self.source)
        step = {"rows": self.rows, "length": self.length, "dtype": self.chosen}
        return None if config is None else {"config": config, "machine": machine(), **step, **more}

    def settings(self) -> Settings:
        """Of the run that it is a step of."""
        from loratlas.training.settings import Settings

        return Settings(batch_size=self.rows, dtype=self.chosen)

    def memory(self) -> Memory:
        """The measure of a memory budget: a table of ranks → peak bytes, from the cache where it was asked before."""
        known = ResultCache("peak")
        measures: list[PeakMemory] = []

        def peak(ranks: Mapping[str, int]) -> int:
            key = self.key(ranks=sorted(ranks.items()))
            known_peak = None if key is None else known.get(key)
            if isinstance(known_peak, int):
                return known_peak
            if not measures:
                from loratlas.cost.peak_memory import PeakMemory
                from loratlas.models.config import load_config

                base = load_config(self.source)
                measures.append(PeakMemory.of_step(base, self.anatomy, self.settings(), length=self.length))
            measured = measures[0](ranks)
            if key is not None:
                known.put(key, measured)
            return measured

        return peak


def proven_config(plan: Plan, source: str) -> dict[str, Any]:
    """The plan as PEFT's config, proven on a copy without weights: now, or when the same was asked before.

    Raises:
        AttachError: see `loratlas.placement.plan.Plan.to_peft`.
    """
    config, known = config_key(source), ResultCache("peft")
    key = {"config": config, "plan": plan.digest}
    kept = None if config is None else known.get(key)
    if isinstance(kept, dict):
        return kept
    proven = jsonable(plan.to_peft(source).to_dict())
    if config is not None:
        known.put(key, proven)
    return proven


def price(plan: Plan, step: Step, *, timed: bool) -> dict[str, Any]:
    """The JSON object ``cost``.

    Args:
        plan: what is priced.
        step: of which rows.
        timed: time what this machine has not timed; without, seconds are given where all is known.

    Returns:
        What arithmetic knows, what the dry run measured and the step it is about. Of a base that no dry run can be
        made of, None for the bytes and the seconds, and why under ``not_predicted``.

    Raises:
        ModelError: ``timed``, and no dry run can be made.
    """
    from loratlas.anatomy.flops import cost

    known = ResultCache("step")
    priced: dict[str, Any] = cost(step.anatomy, plan.ranks, dora=plan.dora).to_json()
    key = step.key(plan=plan.digest, speeds=_speeds())
    measured = None if timed or key is None else known.get(key)
    if not isinstance(measured, dict):
        measured = _dry_run(plan, step, timed=timed)
        # Timing has changed what is known about this machine's speed.
        key = step.key(plan=plan.digest, speeds=_speeds())
        if key is not None:
            known.put(key, measured)
    return priced | {"batch_size": step.rows, "max_length": step.length, "dtype": step.chosen} | measured


def _dry_run(plan: Plan, step: Step, *, timed: bool) -> dict[str, Any]:
    from loratlas.cost.dry_run import dry_run, even_rows
    from loratlas.errors import ModelError
    from loratlas.models.config import load_config

    rows = even_rows(step.rows, step.length)
    try:
        measured = dry_run(load_config(step.source), plan.rows, rows, step.settings(), rslora=plan.rslora)
    except ModelError as error:
        if timed:
            raise
        nothing = dict.fromkeys(("saved_activation_bytes", "peak_bytes", "step_seconds"))
        return nothing | {"not_predicted": error.found}
    return {
        "saved_activation_bytes": measured.saved_bytes,
        "peak_bytes": measured.peak_bytes,
        "step_seconds": _seconds(measured, timed=timed),
    }


def _speeds() -> list[tuple[str, int, int]]:
    """The state of the tables of measured speeds: seconds follow from them."""
    tables = sorted(cache_folder().glob("speed-*.json"))
    return [(table.name, (state := table.stat()).st_size, state.st_mtime_ns) for table in tables]


def _seconds(measured: Any, *, timed: bool) -> float | None:
    from loratlas.cost.calibration import Calibration

    known = Calibration()
    if timed and (missing := len(known.missing([measured]))):
        output.note(f"Timing {missing} operations on this machine, once.")
        known.learn([measured])
    return known.seconds(measured)


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
