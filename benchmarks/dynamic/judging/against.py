"""`auto` against every other arm, one by one, and against the best static arm in hindsight.

In hindsight: of the arms that keep the ranks they begin with, the one with the lowest loss on the tuning seeds, each at
its own rate; then compared on the fresh seeds, which chose nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.dynamic.arms import STATIC
from benchmarks.dynamic.judging.judge import CaseLosses, Interval, difference, mean_difference, tally
from benchmarks.dynamic.queue import tuned
from benchmarks.dynamic.records import Record
from benchmarks.oracle.published import RULES

PUBLISHED = ("adalora", "igulora", "elalora", "flexlora")
"""Arms that move by a published rule."""

STAYING = frozenset(STATIC) | frozenset(RULES) | {"begun"}
"""Arms whose ranks stay as they begin; ``begun`` has those of `all` and begins along its inputs."""

DELTA = 0.01
"""Nats per token by which a loss may be higher and still count as no worse, as in a study."""


def against(cases: Sequence[CaseLosses], arm: str, versus: str) -> dict[str, Any]:
    """How an arm stands to another over cases.

    Args:
        cases: that have both. arm, versus: names.

    Returns:
        ``mean`` of L(arm) − L(versus) with its interval over cases; in how many cases ``better`` and ``worse``.
    """
    return {
        "mean": mean_difference(cases, arm, versus).to_json(),
        **tally([difference(case, arm, versus) for case in cases]),
    }


def best_static(records: Sequence[Record], steps: int, tokens: np.ndarray, trained: Sequence[str]) -> str:
    """The static arm with the lowest tuning loss.

    Args:
        records: of a case. steps: judged. tokens: of each held-out row [N].
        trained: arms that have fresh seeds; the reference is one of them.
    """
    lowest = {
        arm: min(curve.values())
        for arm in trained
        if arm in STAYING and (curve := tuned(records, arm, steps, tokens, 1))
    }
    return min(lowest, key=lambda arm: lowest[arm])


def in_hindsight(found: Sequence[Interval]) -> dict[str, int | float]:
    """Counts over cases of L(auto) − L(best static arm), see `best_static`."""
    return {
        "delta": DELTA,
        "noninferior": sum(one.high < DELTA for one in found),
        "inferior": sum(one.low > DELTA for one in found),
        **tally(found),
    }
