"""Which run comes next: rates are tuned on seeds of their own, arms are compared on fresh ones.

Pure functions of what is on disk, so that a bench that goes on another day asks for the same runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.dynamic.arms import REFERENCE
from benchmarks.dynamic.records import Record

STEP = 1.6
"""Factor between neighbouring rates."""

ANCHOR = 0.005
"""One of the rates, from which all others follow."""

LOWEST, HIGHEST = 2e-4, 0.1
FIRST_FRESH = 101
"""Fresh seeds begin here; tuning seeds at 1."""

HOPELESS = 0.03
"""Nats per token that an arm must lose on the tuning seed, the interval over examples above 0, to be left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How a case is judged.

    Args:
        arms: the reference first.
        rates: of the reference that are tried at least; other arms begin around its best.
        lengths: steps that fresh runs are judged at; reference_lengths: of the reference.
        tuning_lengths: steps of tuning runs; the longest decides.
        tuning_seeds, fresh_seeds: how many.
        first_fresh: the first of the fresh ones, `FIRST_FRESH` or above.
        head_of: steps that heads are a share of; None for the longest of ``lengths``.
        drop_hopeless: whether arms that `hopeless` finds so are spared the fresh seeds.
    """

    arms: Sequence[str]
    rates: Sequence[float]
    lengths: Sequence[int]
    reference_lengths: Sequence[int]
    tuning_lengths: Sequence[int]
    tuning_seeds: int = 1
    fresh_seeds: int = 5
    first_fresh: int = FIRST_FRESH
    drop_hopeless: bool = True
    head_of: int | None = None

    def judged(self, arm: str) -> Sequence[int]:
        """Lengths of an arm's fresh runs."""
        return self.reference_lengths if arm == REFERENCE and self.reference_lengths else self.lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run to train."""

    arm: str
    rate: float
    seed: int
    lengths: tuple[int, ...]


def loss_at(record: Record, length: int, tokens: np.ndarray) -> float:
    """A run's loss at a length, nats per token; infinite where it diverged before."""
    return float(record.lengths[length].sum() / tokens.sum()) if length in record.lengths else np.inf


def tuned(
    records: Sequence[Record], arm: str, length: int, tokens: np.ndarray, seeds: int
) -> dict[float, float]:
    """Rate → loss on the tuning seeds, nats per token; infinite where one diverged, missing until all are there."""
    by_rate: dict[float, list[float]] = {}
    for record in records:
        if record.arm == arm and record.seed < FIRST_FRESH:
            by_rate.setdefault(record.rate, []).append(loss_at(record, length, tokens))
    return {rate: float(np.mean(losses)) for rate, losses in sorted(by_rate.items()) if len(losses) >= seeds}


def wanted_rate(curve: Mapping[float, float], first: Sequence[float]) -> float | None:
    """The next rate to tune; None when the best one has worse neighbours on both sides.

    A diverged neighbour is an edge as well: half-way to it is tried.

    >>> wanted_rate({0.005: 2.0, 0.008: 1.9}, [0.005, 0.008])
    0.0128
    >>> wanted_rate({0.005: 2.0, 0.008: 1.9, 0.0128: 1.95}, [0.005, 0.008]) is None
    True
    """
    for rate in first:
        if not any(abs(rate / tried - 1) < 0.01 for tried in curve):
            return rate
    rates = sorted(curve)
    best = min(rates, key=lambda rate: (curve[rate], rate))
    index = rates.index(best)
    if index == 0:
        lower = nearest_rate(best / STEP)
        return lower if lower >= LOWEST and np.isfinite(curve[best]) else None
    if index == len(rates) - 1:
        higher = nearest_rate(best * STEP)
        return higher if higher <= HIGHEST else None
    if not np.isfinite(curve[rates[index + 1]]) and rates[index + 1] / best > 1.4:
        return nearest_rate(best * STEP**0.5)
    return None


def neighbourhood(rate: float) -> tuple[float, float, float]:
    """Where other arms begin: the reference's best rate, and one step to both sides.

    >>> neighbourhood(0.005)
    (0.005, 0.00313, 0.008)
    """
    return rate, nearest_rate(rate / STEP), nearest_rate(rate * STEP)


def nearest_rate(rate: float) -> float:
    """The nearest of 0.005 · 1.6^(k/2), so that every arm of every case meets the same rates.

    >>> nearest_rate(0.013)
    0.0128
    """
    steps = round(2 * math.log(rate / ANCHOR, STEP)) / 2
    return float(f"{ANCHOR * STEP**steps:.3g}")


def best_rate(curve: Mapping[float, float]) -> float:
    """The rate with the lowest tuning loss."""
    return min(curve, key=lambda rate: (curve[rate], rate))


def hopeless(records: Sequence[Record], arm: str, length: int, tokens: np.ndarray, seeds: int) -> bool:
    """Whether an arm lost so much on the tuning seeds, at the best of its rates, that fresh ones add nothing.

    It must lose `HOPELESS` nats against the reference and the 95 % interval over examples must lie above 0.
    """
    curves = {name: tuned(records, name, length, tokens, seeds) for name in (arm, REFERENCE)}
    if arm == REFERENCE or not all(curves.values()):
        return False
    losses = {
        name: np.mean(
            [
                record.lengths[length]
                for record in records
                if record.arm == name
                and record.seed < FIRST_FRESH
                and record.rate == best_rate(curve)
                and length in record.lengths
            ],
            axis=0,
        )
        for name, curve in curves.items()
    }
    if any(np.ndim(loss) == 0 for loss in losses.values()):
        return True
    z = (losses[arm] - losses[REFERENCE]) / tokens.mean()
    left = z - z.mean() * tokens / tokens.mean()
    error = float(left.std(ddof=1)) / len(left) ** 0.5
    return float(z.mean()) > HOPELESS and float(z.mean()) - 1.96 * error > 0


def tuning_job(protocol: Protocol, records: Sequence[Record], arm: str, rate: float) -> Job:
    """The first tuning seed that an arm was not trained on at a rate."""
    done = {record.seed for record in records if record.arm == arm and record.rate == rate}
    seed = next(seed for seed in range(1, protocol.tuning_seeds + 1) if seed not in done)
    return Job(arm=arm, rate=rate, seed=seed, lengths=tuple(protocol.tuning_lengths))


def next_job(protocol: Protocol, records: Sequence[Record], tokens: np.ndarray) -> Job | None:
    """The first run that is missing: all tuning, rate by rate, then fresh seeds, each with all arms that are left."""
    length, seeds = protocol.tuning_lengths[-1], protocol.tuning_seeds
    first = protocol.rates
    for arm in protocol.arms:
        curve = tuned(records, arm, length, tokens, seeds)
        rate = wanted_rate(curve, first)
        if rate is not None:
            return tuning_job(protocol, records, arm, rate)
        if arm == REFERENCE:
            first = neighbourhood(best_rate(curve))
    left = [
        arm
        for arm in protocol.arms
        if not (protocol.drop_hopeless and hopeless(records, arm, length, tokens, seeds))
    ]
    rates = {arm: best_rate(tuned(records, arm, length, tokens, seeds)) for arm in left}
    return fresh_job(protocol, records, rates)


def fresh_job(protocol: Protocol, records: Sequence[Record], rates: Mapping[str, float]) -> Job | None:
    """The first fresh run that is missing, seed by seed; every arm at its rate."""
    trained = {(record.arm, record.seed) for record in records}
    for seed in range(protocol.first_fresh, protocol.first_fresh + protocol.fresh_seeds):
        for arm, rate in rates.items():
            if (arm, seed) not in trained:
                return Job(arm=arm, rate=rate, seed=seed, lengths=tuple(protocol.judged(arm)))
    return None
