"""Orders of sites: how alike two are, and whether there is one at all.

>>> round(tau({"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 0.1, "b": 0.5, "c": 0.3}), 3)
0.333
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

FEWEST = 3
"""Sites below which an order says nothing."""


def tau(one: Mapping[str, float], two: Mapping[str, float]) -> float:
    """Kendall's τ_b over the sites that both rank; NaN for fewer than `FEWEST`, or where one ranks nothing."""
    from scipy.stats import kendalltau

    a, b = _both(one, two)
    if len(a) < FEWEST or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(kendalltau(a, b).statistic)  # pyright: ignore[reportAttributeAccessIssue]


def tau_of_top(one: Mapping[str, float], two: Mapping[str, float]) -> float:
    """Kendall's τ in which a swap weighs 1/(1 + place) of either site: the top of the order counts most.

    Values must be such that more is better. Source: Vigna (2015), A weighted correlation index for rankings with ties,
    arXiv:1404.3325.
    """
    from scipy.stats import weightedtau

    a, b = _both(one, two)
    if len(a) < FEWEST or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(weightedtau(a, b).statistic)  # pyright: ignore[reportAttributeAccessIssue]


def chance(one: Mapping[str, float], two: Mapping[str, float]) -> float:
    """Probability of so high a τ between two orders that have nothing to do with each other (one-sided p)."""
    from scipy.stats import kendalltau

    a, b = _both(one, two)
    if len(a) < FEWEST or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 1.0
    test = kendalltau(a, b, alternative="greater")
    return float(test.pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def _both(one: Mapping[str, float], two: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    paths = sorted(set(one) & set(two))
    a, b = (np.array([scores[path] for path in paths], dtype=np.float64) for scores in (one, two))
    kept = np.isfinite(a) & np.isfinite(b)
    return a[kept], b[kept]
