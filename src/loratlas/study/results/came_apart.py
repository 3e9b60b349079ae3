"""Runs that came apart from the others of their arm: which, how far, and what that does to a verdict.

A run's residual is its loss less its arm's median and less what its seed gave to all arms (their median, of an even
number the lower one). Residuals of all arms have one scale, 1.4826 times the median size of those that are not 0,
which a few bad runs hardly move. A run above
`FAR` scales, and by more than the margin of equivalence, came apart.

Such a run stays in the difference: it is what training this arm can give. It widens the interval, in an evaluation run
by itself, in a tuning run through the variance of runs (:mod:`loratlas.study.results.estimator`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

FAR = 6.0
"""Robust standard deviations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CameApart:
    """One run.

    Args:
        arm, phase, lr, seed: which. above: nats per token over the others. times: that in their scale.
    """

    arm: str
    phase: str
    lr: float
    seed: int
    above: float
    times: float

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @property
    def sentence(self) -> str:
        """The run in words."""
        return (
            f"seed {self.seed} of {self.arm} is an outlier in {self.phase} ({self.above:+.3f} nats, "
            f"{self.times:.0f} times the spread of runs): it counts, and widens the interval"
        )


def came_apart(
    losses: Mapping[str, np.ndarray],
    *,
    seeds: tuple[int, ...],
    rates: Mapping[str, float],
    phase: str,
    delta: float,
) -> list[CameApart]:
    """Runs of one phase that came apart.

    Args:
        losses: arm → [seeds] token means, NaN where a run is missing or diverged.
        seeds: of the runs. rates: arm → learning rate. phase: "tuning" or "evaluation".
        delta: margin of equivalence, nats per token.
    """
    arms = list(losses)
    table = np.array([losses[arm] for arm in arms], dtype=np.float64)
    if table.shape[0] < 2 or table.shape[1] < 3 or np.isnan(table).all(axis=1).any():
        return []
    left = table - np.nanmedian(table, axis=1, keepdims=True)
    kept = ~np.isnan(left).all(axis=0)
    left[:, kept] -= _lower_median(left[:, kept])
    sizes = np.abs(left[:, kept])
    scale = 1.4826 * float(np.nanmedian(sizes[sizes > 0])) if (sizes > 0).any() else 0.0
    separated = []
    for row, arm in zip(left, arms, strict=True):
        for seed, above in zip(seeds, row, strict=True):
            if above > max(FAR * scale, delta):
                times = float(above / scale) if scale > 0 else 0.0
                separated.append(
                    CameApart(arm=arm, phase=phase, lr=rates[arm], seed=seed, above=float(above), times=times)
                )
    return separated


def _lower_median(table: np.ndarray) -> np.ndarray:
    """Of each column, without its NaNs; between two arms the lower, so that a bad run is not shared out."""
    ordered = np.sort(table, axis=0)  # NaNs last
    count = (~np.isnan(table)).sum(axis=0)
    return np.take_along_axis(ordered, ((count - 1) // 2)[None, :], axis=0)[0]
