"""Clocks and pairs.

Two sides are never compared by two times that were taken apart: they run in turns, A B A B …, and what is reported is
the median over rounds of the ratio within a round. Whatever else the machine does falls on both sides of a ratio.
Wall clock and CPU time stand beside each other; on an idle machine they tell the same story.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measurement.

    Args:
        wall: seconds of wall clock.
        cpu: seconds of CPU time of this process, all threads.
    """

    wall: float
    cpu: float

    @staticmethod
    def middle(samples: Sequence[Sample]) -> Sample:
        """The medians of some samples.

        >>> Sample.middle([Sample(wall=1, cpu=5), Sample(wall=3, cpu=4), Sample(wall=2, cpu=9)])
        Sample(wall=2, cpu=5)
        """
        return Sample(wall=median(s.wall for s in samples), cpu=median(s.cpu for s in samples))


class Clock:
    """Reads both clocks; `lap` gives the time since the last reading."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def lap(self) -> Sample:
        """Time since the last lap; work that an accelerator was given is waited for."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        sample = Sample(wall=wall - self._wall, cpu=cpu - self._cpu)
        self._wall, self._cpu = wall, cpu
        return sample


def timed(run: Callable[[], T]) -> tuple[Sample, T]:
    """A call's time, and what it returned."""
    clock = Clock()
    result = run()
    return clock.lap(), result


def block(run: Callable[[], Any], *, steps: int) -> Sample:
    """The median of some calls in a row."""
    return Sample.middle([timed(run)[0] for _ in range(steps)])


def interleaved(sides: Mapping[str, Callable[[], T]], *, rounds: int) -> dict[str, list[T]]:
    """What every side returned in every round; within a round all sides run once, in their order.

    Args:
        sides: each a call that measures itself.
        rounds: how often.

    >>> interleaved({"a": lambda: 1, "b": lambda: 2}, rounds=2)
    {'a': [1, 1], 'b': [2, 2]}
    """
    by_name: dict[str, list[T]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            gc.collect()  # what one side left behind is not another's to tidy
            by_name[name].append(run())
    return by_name


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """Median of paired ratios, with its quartiles and all pairs.

    >>> ratio([2.0, 3.0, 9.0], [1.0, 1.0, 3.0])["median"]
    3.0
    """
    pairs = [a / b for a, b in zip(above, below, strict=True)]
    ordered = sorted(pairs)
    n = len(ordered)
    return {
        "median": round(median(pairs), 4),
        "quartiles": [round(ordered[n // 4], 4), round(ordered[n - 1 - n // 4], 4)],
        "pairs": [round(pair, 4) for pair in pairs],
    }


def ratios(above: Sequence[Sample], below: Sequence[Sample]) -> dict[str, Any]:
    """`ratio` of wall clock and of CPU time."""
    return {
        "wall": ratio([s.wall for s in above], [s.wall for s in below]),
        "cpu": ratio([s.cpu for s in above], [s.cpu for s in below]),
    }


def seconds(samples: Sequence[Sample]) -> dict[str, float]:
    """Median seconds; for a reader's orientation, never for a comparison."""
    middle = Sample.middle(samples)
    return {"wall": round(middle.wall, 4), "cpu": round(middle.cpu, 4)}
