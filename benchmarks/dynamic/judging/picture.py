"""Difference against steps: what is known of each arm on a real base, at every length."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dynamic.arms import REFERENCE
from benchmarks.dynamic.judging.judge import LEVEL, Interval, in_steps
from benchmarks.dynamic.queue import FIRST_FRESH, best_rate, tuned
from benchmarks.dynamic.records import Record, read_records
from benchmarks.dynamic.work import CASE
from loratlas.study.results.estimator import estimate


def pictures(results: Path) -> list[dict[str, Any]]:
    """Every real case that was begun."""
    return [_picture(path.parent) for path in sorted(results.glob(f"*/{CASE}"))]


def _picture(folder: Path) -> dict[str, Any]:
    shared = json.loads((folder / CASE).read_text(encoding="utf-8"))
    tokens, records = np.array(shared["tokens"], dtype=float), read_records(folder)
    decisive = max((length for r in records if r.seed < FIRST_FRESH for length in r.lengths), default=0)
    rates = {
        arm: best_rate(curve)
        for arm in dict.fromkeys(record.arm for record in records)
        if (curve := tuned(records, arm, decisive, tokens, 1))
    }
    return {
        "base": shared["base"],
        "task": shared["task"],
        "budget": shared["budget"],
        "batch": shared["batch"],
        "rates": rates,
        "tuning": {
            arm: {
                f"{rate:g}": round(loss, 4) for rate, loss in tuned(records, arm, decisive, tokens, 1).items()
            }
            for arm in rates
        },
        "points": [
            point
            for fresh in (False, True)
            for arm, rate in rates.items()
            if arm != REFERENCE
            for point in _points(records, arm, rate, rates.get(REFERENCE), tokens, fresh=fresh)
        ],
    }


def _points(
    records: Sequence[Record], arm: str, rate: float, of_all: float | None, tokens: np.ndarray, *, fresh: bool
) -> list[dict[str, Any]]:
    """arm − all, each at its own best rate, at every length and over the seeds that both have."""

    def runs(name: str, at: float | None) -> dict[int, Record]:
        return {
            r.seed: r for r in records if r.arm == name and r.rate == at and (r.seed >= FIRST_FRESH) == fresh
        }

    one, two = runs(arm, rate), runs(REFERENCE, of_all)
    points = []
    for length in sorted({length for record in one.values() for length in record.lengths}):
        seeds = [s for s in one if s in two and length in one[s].lengths and length in two[s].lengths]
        if seeds:
            table = np.stack([one[s].lengths[length] - two[s].lengths[length] for s in seeds])
            apart = paired(table, tokens)
            saved, reaches = _steps_saved([two[s] for s in seeds], length, apart, tokens)
            points.append(
                {
                    "arm": arm,
                    "steps": length,
                    "seeds": len(seeds),
                    "fresh": fresh,
                    "minus_all": apart.to_json(),
                    "steps_saved": None if saved is None else saved.to_json(),
                    "curve_reaches": reaches,
                }
            )
    return points


def _steps_saved(
    reference: Sequence[Record], steps: int, apart: Interval, tokens: np.ndarray
) -> tuple[Interval | None, tuple[float, float]]:
    """A difference in steps of `all`, by its curve over the same seeds; and the most and the least it can say.

    None where the curve has one length.
    """
    lengths = set.intersection(*(set(record.lengths) for record in reference))
    reaches = (float(max(lengths) - steps), min(lengths) / 2 - steps)
    if len(lengths) < 2:
        return None, reaches
    losses = {
        length: float(np.mean([record.lengths[length].sum() / tokens.sum() for record in reference]))
        for length in lengths
    }
    return in_steps(apart, steps, losses), reaches


def paired(table: np.ndarray, tokens: np.ndarray) -> Interval:
    """A difference of token means with its interval; over rows alone where there is one seed.

    Args:
        table: differences of summed losses [S, N]. tokens: of each row [N].
    """
    if table.shape[0] > 1:
        estimated = estimate(table, tokens)
        low, high = estimated.interval(LEVEL)
        return Interval(value=estimated.value, low=low, high=high)
    z = table[0] / tokens.mean()
    value = float(z.mean())
    left = z - value * tokens / tokens.mean()
    half = 1.96 * float(left.std(ddof=1)) / len(left) ** 0.5
    return Interval(value=value, low=value - half, high=value + half)
