"""Rates 1.26 apart around each arm's best: how much of a difference the registered grid, 1.6 apart, leaves to the rate.

For a few arms of every registered case the two rates half-way to the best one's neighbours are tuned as well, on the
same seeds. An arm whose best is one of them is trained on the case's fresh seeds again. This was not registered: it was
added after the registered runs had been read, and never replaces their verdicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.dynamic.arms import REFERENCE
from benchmarks.dynamic.judging.judge import CaseLosses, difference
from benchmarks.dynamic.queue import (
    FIRST_FRESH,
    STEP,
    Job,
    Protocol,
    best_rate,
    fresh_job,
    nearest_rate,
    tuned,
    tuning_job,
)
from benchmarks.dynamic.records import Record

ARMS = (REFERENCE, "auto", "feedforward")


def between(rate: float) -> tuple[float, float]:
    """Half-way to the neighbours of a rate, in the logarithm.

    >>> between(0.0128)
    (0.0101, 0.0162)
    """
    return nearest_rate(rate / STEP**0.5), nearest_rate(rate * STEP**0.5)


def next_finer(
    protocol: Protocol, registered: Sequence[Record], finer: Sequence[Record], tokens: np.ndarray
) -> Job | None:
    """The first run that is missing; arms that were not trained on the registered grid are left out."""
    length, seeds = protocol.tuning_lengths[-1], protocol.tuning_seeds
    for arm in ARMS:
        coarse = tuned(registered, arm, length, tokens, seeds)
        if not coarse:
            continue
        fine = tuned(finer, arm, length, tokens, seeds)
        for rate in between(best_rate(coarse)):
            if rate not in coarse | fine:
                return tuning_job(protocol, finer, arm, rate)
        best = best_rate(coarse | fine)
        if best not in coarse and (job := fresh_job(protocol, finer, {arm: best})) is not None:
            return job
    return None


def refined(registered: Sequence[Record], finer: Sequence[Record]) -> list[Record]:
    """The fresh runs that count: an arm's finer ones where it has any, else its registered ones."""
    fresh = [record for record in finer if record.seed >= FIRST_FRESH]
    renewed = {record.arm for record in fresh}
    return [
        *fresh,
        *(record for record in registered if record.arm not in renewed and record.seed >= FIRST_FRESH),
    ]


def compared(losses: CaseLosses, records: Sequence[Record]) -> dict[str, Any]:
    """What a case says with finer rates, as plain data.

    Args:
        losses: of `refined` records. records: those.
    """
    rates = {record.arm: record.rate for record in records if record.arm in ARMS}
    return {
        "rates": {arm: rates[arm] for arm in ARMS if arm in rates},
        "minus_all": {arm: difference(losses, arm).to_json() for arm in ARMS[1:] if arm in losses.losses},
    }
