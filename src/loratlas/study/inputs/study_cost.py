"""What a study will take, before anything is trained: runs, steps, time, memory, disk.

    seconds = Σ over arms  runs · (steps · t_arm + e · t_arm · rows_judged / batch size) / workers
    memory  = P + workers · (P + K + base + n · own)

with t_arm the time of a typical step by a dry run (`loratlas.cost.calibration`), and e what a forward pass is of a
step, by arithmetic; P what a process takes before it trains, K what its allocator and its kernels keep, n the runs
that a worker trains side by side and own the dry run's peak of the costliest arm beside the base. A study may need more
runs than are counted here: where an arm's best rate lies at an end of the grid, the grid is extended. A fleet trains
its runs faster than one by one, which is not counted either.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from loratlas.errors import ModelError
from loratlas.study.inputs.fleet_sizing import BYTES, MOST, fleet_size
from loratlas.study.spec.study_spec import StudySpec
from loratlas.training.step.memory import free_bytes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from loratlas.placement.plan import Plan
    from loratlas.study.inputs.prepare import Prepared

BYTES_PER_TRAINED = 16
"""Of a parameter in a checkpoint: its float32 master, both moments, and what keeps the best."""

BYTES_PER_TOKEN = 5
"""Of an encoded row that is kept: ids and which of them count."""

BYTES_PER_RUN, BYTES_PER_ROW = 8192, 20
"""Of a finished run: record and curve, and each judged row's loss."""

PAGE = 2**20
"""Bytes of the page and its findings."""

PROCESS_BYTES, KEPT_BYTES = 500 * 2**20, 600 * 2**20
"""P and K, on a CPU. Resident sizes of workers with gpt2-mini, all-MiniLM-L6-v2 and SmolLM2-135M after minutes of
training were 0.8 to 1.1 times what the formula gives with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyCost:
    """What a study takes.

    Args:
        runs: trained, at least.
        steps: of all of them together.
        workers: that train at the same time.
        seconds: of wall clock on this machine, all workers at work; None where steps cannot be predicted, or were not
            timed.
        peak_bytes: of the arm that needs most, a typical step of one run alone, base included; None where it cannot be
            predicted.
        memory_bytes: of all processes together, about; on an accelerator None: its memory is not theirs.
        disk_bytes: of the study's folder at its largest, at most.
    """

    runs: int
    steps: int
    workers: int
    seconds: float | None
    peak_bytes: int | None
    memory_bytes: int | None
    disk_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def sentence(self) -> str:
        """In one line.

        >>> cost = StudyCost(
        ...     runs=57, steps=3420, workers=2, seconds=4e3, peak_bytes=2**30, memory_bytes=2**32, disk_bytes=2**25
        ... )
        >>> cost.sentence()
        'at least 57 runs, 3,420 steps; about 1 h 06 min; about 4.0 GiB of memory; 32.0 MiB of disk'
        """
        from loratlas.formats import count, data_size, duration

        words = [f"at least {count(self.runs)} runs, {count(self.steps)} steps"]
        if self.seconds is not None:
            words.append(f"about {duration(self.seconds)}")
        if self.memory_bytes is not None:
            words.append(f"about {data_size(self.memory_bytes)} of memory")
        return "; ".join([*words, f"{data_size(self.disk_bytes)} of disk"])


def study_cost(
    spec: StudySpec, prepared: Prepared, *, runs: int, workers: int, device: str, timed: bool
) -> StudyCost:
    """Price a study.

    Args:
        spec: of the study.
        prepared: its base, plans and rows.
        runs: that are known to be needed (`loratlas.study.execution.schedule.schedule`).
        workers: that train at the same time.
        device: of the workers.
        timed: whether seconds are predicted: a dry run of each arm, and what is not known yet of this machine's speed,
            which takes about as long as some steps, once.

    Returns:
        The cost.
    """
    tokens = sum(rows.report.tokens for rows in (prepared.train, prepared.tuning, prepared.evaluation))
    judged = max(len(prepared.tuning), len(prepared.evaluation))
    trainable = max(plan.trainable for plan in prepared.plans.values()) + prepared.head
    at_work = min(workers * MOST, runs)
    peaks = prepared.predicted_peaks().values()
    known = [peak for peak in peaks if peak is not None]
    peak = max(known) if len(known) == len(peaks) else None
    return StudyCost(
        runs=runs,
        steps=runs * spec.steps,
        workers=workers,
        seconds=_seconds(spec, prepared, runs, workers) if timed else None,
        peak_bytes=peak,
        memory_bytes=None if peak is None or device != "cpu" else _memory(spec, prepared, peak, workers),
        disk_bytes=runs * (BYTES_PER_RUN + BYTES_PER_ROW * judged)
        + tokens * BYTES_PER_TOKEN
        + 2 * at_work * trainable * BYTES_PER_TRAINED  # the next checkpoint is whole before the last one goes
        + PAGE,
    )


def _memory(spec: StudySpec, prepared: Prepared, peak: int, workers: int) -> int:
    """Bytes of the coordinator and its workers."""
    together = fleet_size(spec, prepared, "cpu", free=free_bytes("cpu") // workers)
    base = prepared.anatomy.parameters * BYTES[spec.dtype]
    own = max(peak - base, 0)
    return PROCESS_BYTES + workers * (PROCESS_BYTES + KEPT_BYTES + base + together * own)


def _seconds(spec: StudySpec, prepared: Prepared, runs: int, workers: int) -> float | None:
    """Wall clock of all runs; None where a step cannot be predicted."""
    from loratlas.anatomy.flops import cost
    from loratlas.cost.calibration import Calibration
    from loratlas.models.config import load_config

    if spec.trainer is not None:  # the steps of another library
        return None
    known, config = Calibration(), load_config(prepared.source)
    by_arm: list[float] = []
    for name, plan in prepared.plans.items():
        try:
            step = _step(spec, prepared, name, plan, config)
        except ModelError:
            return None
        known.learn([step])
        seconds = known.seconds(step)
        if seconds is None:
            return None
        forward = 2 * prepared.anatomy.parameters / max(cost(prepared.anatomy, plan.ranks).flops_per_token, 1)
        rows = (len(prepared.tuning) + len(prepared.evaluation)) / 2
        by_arm.append(seconds * (spec.steps + min(forward, 1.0) * rows / spec.batch_size))
    return runs * sum(by_arm) / len(by_arm) / workers


def _step(spec: StudySpec, prepared: Prepared, name: str, plan: Plan, config: PretrainedConfig) -> Any:
    """A typical step of an arm, without weights."""
    from loratlas.cost.dry_run import dry_run, typical
    from loratlas.study.inputs.prepare import training
    from loratlas.training.settings import Settings

    settings = Settings(**training(spec), lr=spec.learning_rates[0], loraplus=spec.arms[name].loraplus)
    return dry_run(
        config, plan.rows, typical(prepared.train.examples, spec.batch_size), settings, rslora=plan.rslora
    )
