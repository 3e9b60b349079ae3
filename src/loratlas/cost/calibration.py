"""From a dry run to seconds: every distinct operation of a step is timed once on this machine and kept.

    seconds of a step = Σ over operations n_i · t_i + (number of all operations) · overhead

A transformer repeats its layers, so that a step of thousands of operations has some 150 distinct ones; timing them
takes about as long as a few steps, needs no weights, and the next placement only adds what is new in it. The overhead
(Python, autograd, dispatch) is what a step of a tiny model takes beyond its operations, per operation.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from loratlas.training.step.measurement_cache import MeasurementCache

if TYPE_CHECKING:
    import torch

    from loratlas.cost.dry_run import DryRun
    from loratlas.cost.operations import OperationCall

ENOUGH = 0.02
"""Seconds that an operation is repeated for, at most `MOST` times and at least twice; a slow one runs once more."""

MOST = 9

DISTANCE = 2**25
"""Bytes that the arguments of repetitions spread over, so that a cache does not hold what it would not in a step."""


_OVERHEAD = "overhead"


class Calibration:
    """What is known about this machine's speed.

    Times are kept in the user's cache (`loratlas.training.step.measurement_cache`).

    Args:
        folder: where they are kept; None for the user's cache.
        clock: seconds; another one only for measuring on a busy machine.

    Example:
        ``known = Calibration(); known.learn([dry_run]); known.seconds(dry_run)``
    """

    def __init__(self, folder: Path | None = None, *, clock: Callable[[], float] = time.perf_counter) -> None:
        import torch

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.clock = clock
        self._known = MeasurementCache("speed", self.device, folder)

    def seconds(self, dry_run: DryRun) -> float | None:
        """Seconds of one step; None where an operation has not been timed."""
        if _OVERHEAD not in self._known.values or self.missing([dry_run]):
            return None
        return self._operations(dry_run) + self._known.values[_OVERHEAD] * _count(dry_run)

    def missing(self, dry_runs: Iterable[DryRun]) -> list[OperationCall]:
        """Operations of these steps that have not been timed, each once."""
        calls = Counter(call for dry_run in dry_runs for call in dry_run.calls)
        return [call for call in calls if call.key not in self._known.values]

    def learn(self, dry_runs: Sequence[DryRun]) -> int:
        """Time what is missing, and keep it.

        Returns:
            How many operations were timed.
        """
        from loratlas.training.step.memory import kept_pages

        known = self._known.values
        tiny = None if _OVERHEAD in known else _tiny_dry_run()
        with kept_pages():
            missing = self.missing([*dry_runs, *([tiny] if tiny else [])])
            for call in missing:
                known[call.key] = _time(call, self.device, self.clock)
            if tiny is not None:
                beyond = _tiny_step(self.clock, self.device) - self._operations(tiny)
                known[_OVERHEAD] = max(0.0, beyond / _count(tiny))
        if missing:
            self._known.save()
        return len(missing)

    def _operations(self, dry_run: DryRun) -> float:
        return sum(times * self._known.values[call.key] for call, times in dry_run.calls.items())


def _count(dry_run: DryRun) -> int:
    return sum(dry_run.calls.values()) + dry_run.free


def _time(call: OperationCall, device: torch.device, clock: Callable[[], float]) -> float:
    """Median seconds of one operation, after a first time that does not count."""
    import torch

    copies = max(1, min(MOST, DISTANCE // max(1, call.bytes)))
    sets = [call.arguments(device) for _ in range(copies)]

    def once(turn: int) -> float:
        args, kwargs = sets[turn % copies]
        begun = clock()
        call.func(*args, **kwargs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - begun

    with torch.no_grad():
        once(0)
        taken: list[float] = []
        while len(taken) < MOST and (len(taken) < 2 or sum(taken) < ENOUGH):
            taken.append(once(1 + len(taken)))
    return median(taken)


def _tiny() -> tuple[Any, Any, Any]:
    """Config, rows of the plan and rows of a step whose operations take next to no time themselves."""
    from transformers import LlamaConfig

    from loratlas.adapters.plan_row import PlanRow
    from loratlas.anatomy.read import read
    from loratlas.anatomy.role_table import in_set
    from loratlas.cost.dry_run import even_rows

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 4,
    }
    config = LlamaConfig(**sizes, vocab_size=64)
    rows = [
        PlanRow(site=site, rank=4, alpha=8.0) for site in read(config).adaptable if in_set("all", site.role)
    ]
    return config, rows, even_rows(2, 8)


def _tiny_dry_run() -> DryRun:
    from loratlas.cost.dry_run import dry_run
    from loratlas.training.settings import Settings

    config, rows, examples = _tiny()
    return dry_run(config, rows, examples, Settings(dtype="float32"), packed=True)


def _tiny_step(clock: Callable[[], float], device: torch.device, steps: int = 20) -> float:
    """Seconds of a step of the tiny model, as a run takes it."""
    import torch
    from transformers import AutoModelForCausalLM

    from loratlas.adapters.attach import attach
    from loratlas.cost.dry_run import as_step
    from loratlas.training.loop import fit
    from loratlas.training.settings import Settings

    config, rows, examples = _tiny()
    config.use_cache = False
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config).requires_grad_(False).to(device)
    laps = [clock()]
    settings = Settings(steps=steps, lr=1e-3, batch_size=len(examples), dtype="float32")
    fit(
        attach(rows, model),
        as_step(examples),
        settings,
        packed=True,
        on_step=lambda _event: laps.append(clock()),
    )
    return median(after - before for before, after in pairwise(laps[4:]))
