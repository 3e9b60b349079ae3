"""An arm's best learning rate from losses at three neighbouring rates, and what not knowing it better is worth.

Near its optimum the loss is a parabola in the logarithm x of the rate. With losses y at b − h, b and b + h (b the best
of the tried rates, h half the logarithm of 1.6) and each tuning seed by itself

    slope_s     = (y₊ − y₋) / 2h                    what a seed adds to all its runs leaves both
    curvature_s = (y₊ − 2 y₀ + y₋) / h²
    shift       = −median_s slope / c, at most h    the vertex, from b
    c           = median of curvature over all arms and seeds, at least its standard error

The curvature is shared by the arms of a study: one arm's alone is mostly noise. Medians, for one run in five may come
apart. The arm is evaluated at the vertex. What it loses there against its true optimum is ½ c δ² with δ the error of
the shift, near normal with variance v / c², v the variance of the median slope. Its second moment

    E[(½ c δ²)²] = ¾ v² / c²,      at most (½ c h²)²

(where one seed is all there is, δ is taken to be uniform within half a step: (½ c h²)² / 80)

is the arm's **rate share**, a term of the variance of every difference that the arm is in. The same runs say how
much two runs of a pair of arms differ from seed to seed (:func:`run_variance`).

Chosen by simulation, against the best of the tried rates and against means in place of medians; see
docs/method/statistics.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

MEDIAN_COST = 1.35
"""Variance of the median of three normal numbers over that of their mean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RateChoice:
    """Where each arm of a study is evaluated; arrays have the shape [..., arms].

    Args:
        shift: logarithm of the chosen rate over the middle one, within ±h.
        share: rate share of each arm, nats² per token².
        curvature: c, nats per token per squared unit of the logarithm, shape [...].
    """

    shift: FloatArray
    share: FloatArray
    curvature: FloatArray


def choose(losses: ArrayLike, gap: ArrayLike) -> RateChoice:
    """The vertex of each arm's losses at three rates.

    Args:
        losses: [..., arms, 3, seeds] tuning losses at the middle rate and its two neighbours, nats per token. An arm
            with a value that is not finite gets shift 0 and share 0, and no say in the curvature.
        gap: [..., arms] h, logarithm of one neighbour over the other, halved.

    Returns:
        Shift and share of every arm.

    >>> x = np.log(1.26) * np.array([-1, 0, 1])
    >>> y = 2 + 0.5 * (x - 0.1) ** 2                       # one arm, its optimum at +0.1
    >>> chosen = choose(np.repeat(y[None, :, None], 3, axis=2), np.log(1.26))
    >>> round(float(chosen.shift[0]), 6), round(float(chosen.curvature), 6)
    (0.1, 1.0)
    """
    y = np.asarray(losses, dtype=np.float64)
    known = np.asarray(np.isfinite(y).all(axis=(-2, -1)))  # [..., arms]
    y = np.where(known[..., None, None], y, 0.0)
    h = np.broadcast_to(np.asarray(gap, dtype=np.float64), known.shape)
    seeds = y.shape[-1]
    slopes = (y[..., 2, :] - y[..., 0, :]) / (2 * h[..., None])
    curvatures = (y[..., 2, :] - 2 * y[..., 1, :] + y[..., 0, :]) / h[..., None] ** 2
    arms = known.sum(axis=-1)
    cost = MEDIAN_COST if seeds > 2 else 1.0
    all_curvatures = np.where(known[..., None], curvatures, np.nan).reshape(*y.shape[:-3], -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        count = np.maximum(arms * seeds, 1)
        middle = _nan_median(all_curvatures)
        spread = np.where(count > 1, _nan_variance(all_curvatures), np.inf)
        curvature = np.maximum(middle, np.sqrt(cost * spread / count))
        slope = np.median(slopes, axis=-1)
        # Pooled over arms: the variance of a slope between seeds.
        within = slopes.var(axis=-1, ddof=1) if seeds > 1 else np.full(slope.shape, np.nan)
        variance = cost * np.where(known, within, 0.0).sum(axis=-1) / np.maximum(arms, 1) / seeds
        shift = np.clip(-slope / curvature[..., None], -h, h)
        worst = (0.5 * curvature[..., None] * h**2) ** 2
        share = np.minimum(0.75 * variance[..., None] ** 2 / curvature[..., None] ** 2, worst)
        share = share if seeds > 1 else worst / 80
    usable = known & np.isfinite(curvature)[..., None] & (curvature > 0)[..., None]
    return RateChoice(
        shift=np.where(usable, shift, 0.0),
        share=np.where(usable & np.isfinite(share), share, 0.0),
        curvature=np.where(np.isfinite(curvature), curvature, 0.0),
    )


def run_variance(arm: ArrayLike, reference: ArrayLike) -> FloatArray:
    """How much the difference of two runs of one seed varies from seed to seed, at the rates next to the optimum.

    Args:
        arm, reference: [..., 3, seeds] tuning losses of both arms at their own three rates; the same seeds.

    Returns:
        [...] variance over seeds, mean of the three rates, nats² per token².
    """
    difference = np.asarray(arm, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    return difference.var(axis=-1, ddof=1).mean(axis=-1)


def _nan_median(values: FloatArray) -> FloatArray:
    empty = np.asarray(np.isnan(values).all(axis=-1))
    return np.where(empty, np.nan, np.nanmedian(np.where(empty[..., None], 0.0, values), axis=-1))


def _nan_variance(values: FloatArray) -> FloatArray:
    known = ~np.isnan(values)
    count = known.sum(axis=-1)
    mean = np.where(known, values, 0.0).sum(axis=-1) / np.maximum(count, 1)
    squares = np.where(known, (values - mean[..., None]) ** 2, 0.0).sum(axis=-1)
    return np.where(count < 2, np.inf, squares / np.maximum(count - 1, 1))
