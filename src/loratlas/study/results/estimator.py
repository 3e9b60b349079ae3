"""The estimator of every study: a difference of token means over seeds *and* examples, with its interval.

Two arms were trained with the same S seeds and judged on the same N units. A unit is an example, or all examples that
share a prompt or a document (:func:`by_cluster`). A finding speaks about new seeds and new units at once, so both
vary: seeds and units are crossed random effects.

With x_si the difference of the summed answer losses of unit i under seed s, n_i its answer tokens and n̄ the mean
of n_i:

    z_si = x_si / n̄                         weighted so that its mean is the difference of token means
    D    = mean z_si
    r_si = z_si − D · n_i / n̄               what is left; D is a ratio, and this is its linearisation
    V    = s²(seed means of r) / S + s²(unit means of r) / N − MS_resid / (S · N) + rate share
           where s² of units is the jackknife's: the mean of r_i over seeds is divided by 1 − n_i / Σn

The third term takes away the run-to-run noise that the first two both count. V is floored at the larger of the
first two terms, because a variance estimate below either of its parts is noise. Three things are added to that:

**Runs seen while tuning.** Five seeds may hold no run that came apart although one in five does. Where tuning has seen
more runs near the optimum, s²(seed means) is no smaller than its mean with their variance, weighted by degrees of
freedom.

**Long answers.** A few long answers carry much of a token mean, and pull it towards themselves, which the jackknife
undoes (units of one length leave s² as it is). Where the effect grows with length D is skewed. The unit term has
(Σ n²)² / Σ n⁴ degrees of freedom, at most N − 1 (units whose variance is proportional to n²), and no more than what
the kurtosis of the units' means leaves, 2 / (Σ r̄⁴ / (Σ r̄²)² − 1/N). The statistic t = D / √V is straightened by
Hall's (1992) cubic transformation

    g(t) = t + γ t² / 3 + γ² t³ / 27 + γ / 6,      γ = Σ_i (mean_s r_si / N / (1 − n_i / Σn))³ / V^(3/2)

which is monotone, so that interval and p are of one test: p is that of |g|, and the ends of the interval are
D − √V · g⁻¹(±q) with q the t quantile.

**The rate.** The share of V that stands for learning rates which are not quite the best; see
:mod:`loratlas.study.execution.rate_choice`.

Degrees of freedom are Satterthwaite's, at least S − 1.

Sources:
    F. E. Satterthwaite (1946), An approximate distribution of estimates of variance components, Biometrics
    Bulletin 2(6), for the degrees of freedom of a sum of mean squares. S. R. Searle, G. Casella and
    C. E. McCulloch (1992), Variance Components, chapter 4, for the crossed two-way layout. W. G. Cochran
    (1977), Sampling Techniques, section 6.4, for the variance of a ratio by linearisation. P. Hall (1992), On the
    removal of skewness by transformation, Journal of the Royal Statistical Society B 54(1). R. M. Bell and
    D. F. McCaffrey (2002), Bias reduction in standard errors for linear regression with multi-stage samples, Survey
    Methodology 28(2), for degrees of freedom of unequal units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from loratlas.study.results.power import detectable

FloatArray = NDArray[np.float64]

RATE_DF = 4
"""Degrees of freedom that the rate share is given: it is made of few tuning seeds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A token mean (or a difference of two) with what its uncertainty is made of.

    Args:
        value: D, in nats per token.
        error: √V, the standard error in nats per token; NaN where there are fewer than two seeds or units.
        df: Satterthwaite's degrees of freedom, at least S − 1.
        seeds: S.
        examples: rows that were judged.
        units: N, groups of rows that vary independently of each other; None: every example is one.
        seed_share: s²(seed means) / S, nats² per token².
        example_share: s²(unit means) / N, nats² per token².
        residual_share: MS_resid / (S · N), nats² per token².
        rate_share: of learning rates that may not be the best, nats² per token².
        skewness: γ, of D over new units.
    """

    value: float
    error: float
    df: float
    seeds: int
    examples: int
    seed_share: float
    example_share: float
    residual_share: float
    units: int | None = None
    rate_share: float = 0.0
    skewness: float = 0.0

    def interval(self, level: float) -> tuple[float, float]:
        """The two-sided interval at this level, e.g. 0.95; (NaN, NaN) where no error could be estimated."""
        from scipy.stats import t

        q = float(t.ppf(0.5 + level / 2, self.df))
        low = self.value - self.error * float(bend(q, self.skewness))
        return low, self.value - self.error * float(bend(-q, self.skewness))

    @property
    def p(self) -> float:
        """Two-sided p of "the true value is 0"; 1 for an exact 0, NaN where no error could be estimated."""
        return float(p_value(self.value, self.error, self.df, self.skewness))

    def detectable(self, *, alpha: float = 0.05, power: float = 0.8) -> float:
        """The true difference this study would have shown with ``power``, by :mod:`loratlas.study.results.power`.

        Of a skewed statistic, the larger of both directions: a share of power is lost or won by the bend.
        """
        straight = detectable(self.error, self.df, alpha=alpha, power=power)
        return straight + float(skew_allowance(self.error, self.df, self.skewness, level=1 - alpha))


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossed:
    """The estimator's terms for a batch of studies at once; every array has the batch's shape.

    Args:
        value: D. seed_share, example_share, residual_share: the three terms of V before the floor.
        variance: V after the floor, the rate share included. df: degrees of freedom. skewness: γ.
    """

    value: FloatArray
    seed_share: FloatArray
    example_share: FloatArray
    residual_share: FloatArray
    variance: FloatArray
    df: FloatArray
    skewness: FloatArray


def crossed(
    summed: ArrayLike,
    tokens: ArrayLike,
    *,
    run_variance: ArrayLike = 0.0,
    run_df: float = 0.0,
    rate_share: ArrayLike = 0.0,
) -> Crossed:
    """The estimator, vectorised over leading dimensions.

    Args:
        summed: [..., S, N] summed answer losses in nats, or differences of them; S, N ≥ 2.
        tokens: [N] or [..., N] answer tokens of each unit, 0 or more: units of 0 tokens are none.
        run_variance: [...] variance of the same difference between single runs, as tuning saw it; nats² per token².
        run_df: its degrees of freedom; 0: there is none.
        rate_share: [...] see :class:`loratlas.study.execution.rate_choice.RateChoice`.
    """
    x = np.asarray(summed, dtype=np.float64)
    n = np.asarray(tokens, dtype=np.float64)
    S = x.shape[-2]
    N = np.maximum((n > 0).sum(axis=-1), 2).astype(np.float64)
    total = n.sum(axis=-1)
    value = x.sum(axis=(-2, -1)) / S / total
    # In nats per token of the whole: their sum over units is what a seed's mean deviates by.
    r = (x - value[..., None, None] * n[..., None, :]) / total[..., None, None]
    by_seed = r.sum(axis=-1)  # [..., S]
    by_unit = r.mean(axis=-2)  # [..., N]; sums to 0
    weight = (n > 0) / N[..., None]
    residual = (r - by_seed[..., None] * weight[..., None, :] - by_unit[..., None, :]) * (n > 0)[..., None, :]
    seed_variance = by_seed.var(axis=-1, ddof=1)
    a = seed_variance / S
    # What D loses without a unit: long ones pull the ratio towards themselves. For units of one length b is s² / N.
    without = by_unit / (1 - n / total[..., None])
    b = (N - 1) / N * (without**2).sum(axis=-1)
    c = N * (residual**2).sum(axis=(-2, -1)) / ((S - 1) * (N - 1)) / S
    pooled = ((S - 1) * seed_variance + run_df * np.asarray(run_variance)) / (S - 1 + run_df)
    widened = np.maximum(a, pooled / S)
    rate = np.asarray(rate_share, dtype=np.float64)
    variance = np.maximum(widened + b - c, np.maximum(widened, b)) + rate
    # Satterthwaite: terms are multiples of independent mean squares with their degrees of freedom.
    units = np.minimum((n**2).sum(axis=-1) ** 2 / (n**4).sum(axis=-1), N - 1)
    squares = (without**2).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        kurtosis = np.where(squares > 0, (without**4).sum(axis=-1) / squares**2, 3 / N)
        units = np.minimum(units, 2 / np.maximum(kurtosis - 1 / N, 1e-12))
    spread = (
        widened**2 / (S - 1) + b**2 / np.maximum(units, 1) + c**2 / ((S - 1) * (N - 1)) + rate**2 / RATE_DF
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        df = np.where(spread > 0, variance**2 / spread, S - 1)
        skewness = np.where(variance > 0, (without * without**2).sum(axis=-1) / variance**1.5, 0.0)
    return Crossed(
        value=value,
        seed_share=a,
        example_share=b,
        residual_share=c,
        variance=variance,
        df=np.maximum(df, S - 1),
        skewness=skewness,
    )


def by_cluster(
    summed: ArrayLike, tokens: ArrayLike, clusters: ArrayLike | None
) -> tuple[FloatArray, FloatArray]:
    """Units of examples: losses and tokens added up within each cluster, which then counts once.

    Args:
        summed: [..., N] summed losses of examples. tokens: [N] answer tokens.
        clusters: [N] one number for each example, equal within a cluster; None: every example is a unit.

    Returns:
        Summed losses [..., M] and tokens [M] of the M clusters.

    >>> x, n = by_cluster(np.array([[1.0, 2.0, 4.0]]), np.array([1, 1, 2]), np.array([7, 7, 9]))
    >>> x.tolist(), n.tolist()
    ([[3.0, 4.0]], [2.0, 2.0])
    """
    x, n = np.asarray(summed, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    if clusters is None:
        return x, n
    labels = np.asarray(clusters)
    if labels.shape != n.shape:
        raise ValueError(f"expected one cluster for each of {n.shape} examples, got {labels.shape}")
    order = np.argsort(labels, kind="stable")
    begins = np.flatnonzero(np.diff(labels[order], prepend=labels[order][:1] - 1))
    return np.add.reduceat(x[..., order], begins, axis=-1), np.add.reduceat(n[order], begins)


def estimate(
    summed: ArrayLike,
    tokens: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    run_variance: float = 0.0,
    run_df: float = 0.0,
    rate_share: float = 0.0,
) -> Estimate:
    """One token mean, or one difference of token means, with its standard error.

    Args:
        summed: [S, N] summed answer losses in nats, or arm minus reference, seed by seed, row by row.
        tokens: [N] answer tokens of each example.
        clusters: [N] see :func:`by_cluster`.
        run_variance, run_df, rate_share: see :func:`crossed`.

    Returns:
        An :class:`Estimate`; with fewer than two seeds or units the error is NaN and the degrees of freedom are 1.

    Raises:
        ValueError: shapes that do not fit, or an example without answer tokens.

    >>> import numpy as np
    >>> one = estimate(np.array([[2.0, 6.0], [4.0, 8.0]]), np.array([2, 4]))
    >>> round(one.value, 4), one.seeds, one.examples
    (1.6667, 2, 2)
    """
    x = np.asarray(summed, dtype=np.float64)
    n = np.asarray(tokens, dtype=np.float64)
    if x.ndim != 2 or n.shape != x.shape[1:]:
        raise ValueError(f"expected summed losses [S, N] and tokens [N], got {x.shape} and {n.shape}")
    if x.size == 0 or not (n > 0).all():
        raise ValueError("there must be at least one example, and an answer token in each")
    S, rows = x.shape
    x, n = by_cluster(x, n, clusters)
    units = x.shape[1]
    if S < 2 or units < 2:
        unknown = math.nan
        return Estimate(
            value=float(x.sum() / S / n.sum()),
            error=unknown,
            df=1.0,
            seeds=S,
            examples=rows,
            units=units,
            seed_share=unknown,
            example_share=unknown,
            residual_share=unknown,
        )
    terms = crossed(x, n, run_variance=run_variance, run_df=run_df, rate_share=rate_share)
    return Estimate(
        value=float(terms.value),
        error=math.sqrt(float(terms.variance)),
        df=float(terms.df),
        seeds=S,
        examples=rows,
        units=units,
        seed_share=float(terms.seed_share),
        example_share=float(terms.example_share),
        residual_share=float(terms.residual_share),
        rate_share=rate_share,
        skewness=float(terms.skewness),
    )


def straighten(t: ArrayLike, skewness: ArrayLike) -> FloatArray:
    """Hall's g(t): a skewed statistic as one whose distribution is close to t."""
    t, y = np.asarray(t, dtype=np.float64), np.asarray(skewness, dtype=np.float64)
    return t + y * t**2 / 3 + y**2 * t**2 * t / 27 + y / 6


def bend(q: ArrayLike, skewness: ArrayLike) -> FloatArray:
    """The inverse of :func:`straighten`: (1 + γ t / 3)³ = 1 + γ (q − γ / 6).

    >>> float(bend(straighten(1.7, 0.4), 0.4).round(12))
    1.7
    """
    q, y = np.asarray(q, dtype=np.float64), np.asarray(skewness, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        bent = 3 * (np.cbrt(1 + y * (q - y / 6)) - 1) / y
    return np.where(np.abs(y) < 1e-6, q, bent)


def skew_allowance(error: ArrayLike, df: ArrayLike, skewness: ArrayLike, *, level: float) -> FloatArray:
    """How much further the longer arm of the bent interval reaches than a straight one, nats per token."""
    from scipy.stats import t

    q = t.ppf(0.5 + level / 2, np.asarray(df, dtype=np.float64))
    longest = np.maximum(bend(q, skewness), -bend(-q, skewness))
    return np.asarray(error, dtype=np.float64) * np.maximum(0.0, longest - q)


def p_value(value: ArrayLike, error: ArrayLike, df: ArrayLike, skewness: ArrayLike = 0.0) -> FloatArray:
    """Two-sided p of t = value / error; where the error is 0, 1 for a value of 0 and 0 for any other."""
    from scipy.stats import t

    value, error = np.asarray(value, dtype=np.float64), np.asarray(error, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        straight = straighten(value / error, skewness)
        p = 2 * t.sf(np.abs(straight), np.asarray(df, dtype=np.float64))
    return np.where(error == 0, np.where(value == 0, 1.0, 0.0), p)
