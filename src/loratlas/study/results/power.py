"""What a comparison could have shown, and what several comparisons at once cost.

Source:
    S. Holm (1979), A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def detectable(error: float, df: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest true difference that the two-sided t test at level ``alpha`` finds with this power.

    Solves P(|T| > t_{1−alpha/2}) = power for the noncentrality of T, a noncentral t with ``df`` degrees, and
    multiplies by the standard error.

    Args:
        error: standard error, nats per token.
        df: degrees of freedom.
        alpha: level of the test; 0.05 / m where a study makes m comparisons.
        power: probability of finding it.

    Returns:
        The difference in nats per token; NaN where the error is.

    >>> round(detectable(1.0, 1e9), 2)      # the normal case: 1.96 + 0.84
    2.8
    >>> round(detectable(1.0, 4), 2)        # five seeds, and nothing but seeds
    3.76
    """
    return error * _noncentrality(df, alpha, power) if math.isfinite(error) else math.nan


def _noncentrality(df: float, alpha: float, power: float) -> float:
    from scipy.optimize import brentq
    from scipy.stats import chi2, norm, t

    # T = (Z + k) / u with u = √(χ²_df / df): average the normal's power over u, at Gauss–Legendre nodes of
    # its quantiles. (scipy's nct returns NaN far out, where the root's bracket has to begin.)
    nodes, weights = np.polynomial.legendre.leggauss(400)
    u = np.sqrt(chi2.ppf((nodes + 1) / 2, df) / df)
    edge = float(t.ppf(1 - alpha / 2, df))

    def miss(k: float) -> float:
        missed = norm.cdf(k - edge * u) + norm.cdf(-k - edge * u)
        return float((missed * weights).sum() / 2) - power

    return float(brentq(miss, 0.0, 4 * edge + 10))  # pyright: ignore[reportArgumentType]  (full_output=False)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: the k-th smallest of m times m − k + 1, made monotone, capped at 1.

    A missing p (NaN) stays NaN but still counts in m: a comparison that failed was planned all the same.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    m = len(p)
    adjusted = [math.nan] * m
    running = 0.0
    for rank, index in enumerate(sorted((i for i in range(m) if not math.isnan(p[i])), key=lambda i: p[i])):
        running = max(running, min(1.0, (m - rank) * p[index]))
        adjusted[index] = running
    return adjusted


def bonferroni(p: Sequence[float]) -> list[float]:
    """Every p times their number, at most 1: p ≤ α after it exactly where the interval at 1 − α/m leaves out 0.

    A missing p (NaN) stays NaN but still counts.

    >>> bonferroni([0.01, 0.03, 0.6])
    [0.03, 0.09, 1.0]
    """
    return [p_i if math.isnan(p_i) else min(1.0, len(p) * p_i) for p_i in p]
