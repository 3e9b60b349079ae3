"""The estimator of every study: a difference of token means over seeds *and* examples, with its interval.

Two arms were trained with the same S seeds and judged on the same N examples. A finding speaks about new
seeds and new examples at once, so both vary: seeds and examples are crossed random effects.

With x_si the difference of the summed answer losses of example i under seed s, n_i its answer tokens and
n̄ the mean of n_i:

    d_si = x_si / n_i                       difference per token
    z_si = n_i · d_si / n̄                   weighted so that its mean is the difference of token means
    D    = mean z_si
    r_si = z_si − D · n_i / n̄               what is left; D is a ratio, and this is its linearisation
    V    = s²(seed means of r) / S + s²(example means of r) / N − MS_resid / (S · N)

The third term takes away the run-to-run noise that the first two both count. V is floored at the larger of
the first two terms, because a variance estimate below either of its parts is noise. The interval is
D ± t · √V with Satterthwaite's degrees of freedom, at least S − 1.

Sources:
    F. E. Satterthwaite (1946), An approximate distribution of estimates of variance components, Biometrics
    Bulletin 2(6), for the degrees of freedom of a sum of mean squares. S. R. Searle, G. Casella and
    C. E. McCulloch (1992), Variance Components, chapter 4, for the crossed two-way layout. W. G. Cochran
    (1977), Sampling Techniques, section 6.4, for the variance of a ratio by linearisation. S. Holm (1979),
    A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A token mean (or a difference of two) with what its uncertainty is made of.

    Args:
        value: D, in nats per token.
        error: √V, the standard error in nats per token; NaN where there are fewer than two seeds or examples.
        df: Satterthwaite's degrees of freedom, at least S − 1.
        seeds: S.
        examples: N.
        seed_share: s²(seed means) / S, nats² per token².
        example_share: s²(example means) / N, nats² per token².
        residual_share: MS_resid / (S · N), nats² per token².
    """

    value: float
    error: float
    df: float
    seeds: int
    examples: int
    seed_share: float
    example_share: float
    residual_share: float

    def interval(self, level: float) -> tuple[float, float]:
        """The two-sided t interval at this level, e.g. 0.95; (NaN, NaN) where no error could be estimated."""
        from scipy.stats import t

        half = float(t.ppf(0.5 + level / 2, self.df)) * self.error
        return self.value - half, self.value + half

    @property
    def p(self) -> float:
        """Two-sided p of "the true value is 0"; 1 for an exact 0, NaN where no error could be estimated."""
        return float(p_value(self.value, self.error, self.df))

    def detectable(self, *, alpha: float = 0.05, power: float = 0.8) -> float:
        """The true difference this study would have found with ``power``; see :func:`detectable`."""
        return detectable(self.error, self.df, alpha=alpha, power=power)


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossed:
    """The estimator's parts for a batch of studies at once; every array has the batch's shape.

    Args:
        value: D. seed_share, example_share, residual_share: the three terms of V before the floor.
        variance: V after the floor. df: degrees of freedom.
    """

    value: FloatArray
    seed_share: FloatArray
    example_share: FloatArray
    residual_share: FloatArray
    variance: FloatArray
    df: FloatArray


def crossed(summed: ArrayLike, tokens: ArrayLike) -> Crossed:
    """The estimator, vectorised over leading dimensions.

    Args:
        summed: [..., S, N] summed answer losses in nats, or differences of them; S, N ≥ 2.
        tokens: [N] or [..., N] answer tokens of each example, all positive.
    """
    x = np.asarray(summed, dtype=np.float64)
    n = np.asarray(tokens, dtype=np.float64)
    S, N = x.shape[-2:]
    weight = (n / n.mean(axis=-1, keepdims=True))[..., None, :]  # [..., 1, N]: n_i / n̄
    z = x / n.mean(axis=-1)[..., None, None]
    value = z.mean(axis=(-2, -1))
    r = z - value[..., None, None] * weight
    by_seed = r.mean(axis=-1, keepdims=True)  # [..., S, 1]
    by_example = r.mean(axis=-2, keepdims=True)  # [..., 1, N]
    residual = r - by_seed - by_example + r.mean(axis=(-2, -1), keepdims=True)
    a = by_seed[..., 0].var(axis=-1, ddof=1) / S
    b = by_example[..., 0, :].var(axis=-1, ddof=1) / N
    c = (residual**2).sum(axis=(-2, -1)) / ((S - 1) * (N - 1)) / (S * N)
    variance = np.maximum(a + b - c, np.maximum(a, b))
    # Satterthwaite: a, b, c are multiples of independent mean squares with S−1, N−1 and (S−1)(N−1) degrees.
    spread = a**2 / (S - 1) + b**2 / (N - 1) + c**2 / ((S - 1) * (N - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        df = np.where(spread > 0, variance**2 / spread, S - 1)
    return Crossed(
        value=value,
        seed_share=a,
        example_share=b,
        residual_share=c,
        variance=variance,
        df=np.maximum(df, S - 1),
    )


def estimate(summed: ArrayLike, tokens: ArrayLike) -> Estimate:
    """One token mean, or one difference of token means, with its standard error.

    Args:
        summed: [S, N] summed answer losses in nats, or arm minus reference, seed by seed, row by row.
        tokens: [N] answer tokens of each example.

    Returns:
        An :class:`Estimate`; with S < 2 or N < 2 the error is NaN and the degrees of freedom are 1.

    Raises:
        ValueError: shapes that do not fit, or an example without answer tokens.

    >>> import numpy as np
    >>> found = estimate(np.array([[2.0, 6.0], [4.0, 8.0]]), np.array([2, 4]))
    >>> round(found.value, 4), found.seeds, found.examples
    (1.6667, 2, 2)
    """
    x = np.asarray(summed, dtype=np.float64)
    n = np.asarray(tokens, dtype=np.float64)
    if x.ndim != 2 or n.shape != x.shape[1:]:
        raise ValueError(f"expected summed losses [S, N] and tokens [N], got {x.shape} and {n.shape}")
    if x.size == 0 or not (n > 0).all():
        raise ValueError("there must be at least one example, and an answer token in each")
    S, N = x.shape
    if S < 2 or N < 2:
        unknown = math.nan
        return Estimate(
            value=float(x.mean() / n.mean()),
            error=unknown,
            df=1.0,
            seeds=S,
            examples=N,
            seed_share=unknown,
            example_share=unknown,
            residual_share=unknown,
        )
    parts = crossed(x, n)
    return Estimate(
        value=float(parts.value),
        error=math.sqrt(float(parts.variance)),
        df=float(parts.df),
        seeds=S,
        examples=N,
        seed_share=float(parts.seed_share),
        example_share=float(parts.example_share),
        residual_share=float(parts.residual_share),
    )


def p_value(value: ArrayLike, error: ArrayLike, df: ArrayLike) -> FloatArray:
    """Two-sided p of t = value / error; where the error is 0, 1 for a value of 0 and 0 for any other."""
    from scipy.stats import t

    value, error = np.asarray(value, dtype=np.float64), np.asarray(error, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * t.sf(np.abs(value / error), np.asarray(df, dtype=np.float64))
    return np.where(error == 0, np.where(value == 0, 1.0, 0.0), p)


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
        found = norm.cdf(k - edge * u) + norm.cdf(-k - edge * u)
        return float((found * weights).sum() / 2) - power

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
