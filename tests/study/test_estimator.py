"""The estimator: against its formula written out slowly, its symmetries, and its coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import nct, t

from loratlas.study.results.estimator import (
    Estimate,
    bend,
    by_cluster,
    crossed,
    estimate,
    p_value,
    straighten,
)
from loratlas.study.results.power import bonferroni, detectable, holm


def slow(x, n):
    """The formula of the docstring, one sum at a time: value, variance, degrees of freedom."""
    S, N = len(x), len(n)
    mean_n = sum(n) / N
    z = [[n[i] * (x[s][i] / n[i]) / mean_n for i in range(N)] for s in range(S)]
    D = sum(map(sum, z)) / (S * N)
    r = [[z[s][i] - D * n[i] / mean_n for i in range(N)] for s in range(S)]
    rows = [sum(r[s]) / N for s in range(S)]
    columns = [sum(r[s][i] for s in range(S)) / S for i in range(N)]
    grand = sum(rows) / S
    a = sum((v - grand) ** 2 for v in rows) / (S - 1) / S
    without = [(v - grand) / N / (1 - k / sum(n)) for v, k in zip(columns, n, strict=True)]
    b = sum(v**2 for v in without) * (N - 1) / N
    square = sum((r[s][i] - rows[s] - columns[i] + grand) ** 2 for s in range(S) for i in range(N))
    c = square / ((S - 1) * (N - 1)) / (S * N)
    V = max(a + b - c, a, b)
    kurtosis = sum(v**4 for v in without) / sum(v**2 for v in without) ** 2
    units = min(sum(k**2 for k in n) ** 2 / sum(k**4 for k in n), N - 1, 2 / (kurtosis - 1 / N))
    df = V**2 / (a**2 / (S - 1) + b**2 / units + c**2 / ((S - 1) * (N - 1)))
    return D, V, max(df, S - 1)


def drawn(seed: int, S: int = 5, N: int = 40, seed_sd: float = 0.3, example_sd: float = 1.0):
    random = np.random.default_rng(seed)
    n = random.integers(1, 60, N)
    per_token = (
        random.normal(0, seed_sd, (S, 1)) + random.normal(0, example_sd, N) + random.normal(0, 1, (S, N))
    )
    return per_token * n, n


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_formula_written_out(seed):
    x, n = drawn(seed, S=3 + seed)
    estimated = estimate(x, n)
    value, variance, df = slow(x.tolist(), n.tolist())
    assert estimated.value == pytest.approx(value, rel=1e-12)
    assert estimated.error**2 == pytest.approx(variance, rel=1e-12)
    assert estimated.df == pytest.approx(df, rel=1e-12)


def test_units_of_one_length_are_the_two_way_layout():
    x = drawn(1)[0]
    estimated = estimate(x, np.full(x.shape[1], 7))
    z = x / 7
    assert estimated.example_share == pytest.approx(z.mean(axis=0).var(ddof=1) / x.shape[1])
    assert estimated.seed_share == pytest.approx(z.mean(axis=1).var(ddof=1) / len(x))


def test_by_hand():
    # Two seeds, two examples of one token each: z = x. D = 2, residuals ±1 by seed only.
    estimated = estimate(np.array([[1.0, 1.0], [3.0, 3.0]]), np.array([1, 1]))
    assert estimated.value == 2.0
    # Seed means −1 and 1: s² = 2, over S = 2 gives 1; no example variance, no residual.
    assert (estimated.seed_share, estimated.example_share, estimated.residual_share) == (1.0, 0.0, 0.0)
    assert (estimated.error, estimated.df) == (1.0, 1.0)
    low, high = estimated.interval(0.95)
    assert (low, high) == pytest.approx((2 - 12.7062, 2 + 12.7062), abs=1e-4)


def test_value_is_the_difference_of_token_means():
    a, n = drawn(1)
    b, _ = drawn(2)
    assert estimate(a - b, n).value == pytest.approx(a.sum() / (5 * n.sum()) - b.sum() / (5 * n.sum()))


def test_the_floor_is_the_larger_of_both_parts():
    # Pure run-to-run noise: the residual term alone would take the variance below its parts in many draws.
    floored = 0
    for seed in range(200):
        x, n = drawn(seed, S=3, N=20, seed_sd=0, example_sd=0)
        estimated = estimate(x, n)
        parts = max(estimated.seed_share, estimated.example_share)
        assert estimated.error**2 >= parts * (1 - 1e-12)
        floored += estimated.seed_share + estimated.example_share - estimated.residual_share < parts
    assert floored > 20


@given(st.integers(0, 10_000))
def test_labels_swapped_change_the_sign_and_nothing_else(seed):
    x, n = drawn(seed)
    one, other = estimate(x, n), estimate(-x, n)
    assert other.value == -one.value
    assert (other.error, other.df, other.p) == pytest.approx((one.error, one.df, one.p), rel=1e-12)


@given(st.integers(0, 10_000))
def test_orders_do_not_matter(seed):
    x, n = drawn(seed)
    random = np.random.default_rng(seed)
    examples, seeds = random.permutation(len(n)), random.permutation(len(x))
    one, other = estimate(x, n), estimate(x[seeds][:, examples], n[examples])
    assert other.value == pytest.approx(one.value, rel=1e-9, abs=1e-12)
    assert other.error == pytest.approx(one.error, rel=1e-9)
    assert other.df == pytest.approx(one.df, rel=1e-9)


@given(st.integers(0, 10_000), st.floats(0.01, 100))
def test_scale(seed, factor):
    x, n = drawn(seed)
    one, other = estimate(x, n), estimate(factor * x, n)
    assert other.value == pytest.approx(factor * one.value)
    assert other.error == pytest.approx(factor * one.error)
    assert other.p == pytest.approx(one.p)


def test_a_shift_of_every_token_shifts_the_difference_alone():
    x, n = drawn(3)
    one, other = estimate(x, n), estimate(x + 0.25 * n, n)
    assert other.value == pytest.approx(one.value + 0.25)
    assert other.error == pytest.approx(one.error)


def test_batches_of_studies_equal_single_ones():
    batch = [drawn(seed) for seed in range(4)]
    parts = crossed(np.stack([x for x, _ in batch]), np.stack([n for _, n in batch]))
    for index, (x, n) in enumerate(batch):
        alone = estimate(x, n)
        assert parts.value[index] == pytest.approx(alone.value)
        assert math.sqrt(parts.variance[index]) == pytest.approx(alone.error)
        assert parts.df[index] == pytest.approx(alone.df)


def test_identical_arms_differ_by_an_exact_zero():
    estimated = estimate(np.zeros((5, 30)), np.full(30, 7))
    assert (estimated.value, estimated.error, estimated.p, estimated.interval(0.95)) == (
        0.0,
        0.0,
        1.0,
        (0.0, 0.0),
    )


def test_one_seed_gives_no_interval():
    estimated = estimate(np.ones((1, 30)), np.full(30, 2))
    assert estimated.value == 0.5
    assert math.isnan(estimated.error)
    assert math.isnan(estimated.p)


@pytest.mark.parametrize(
    ("x", "n"),
    [(np.ones((2, 3)), np.ones(2)), (np.ones((2, 2)), np.array([1, 0])), (np.ones((2, 0)), np.ones(0))],
)
def test_shapes_and_lengths_are_checked(x, n):
    with pytest.raises(ValueError, match=r"expected|at least one"):
        estimate(x, n)


@pytest.mark.parametrize("df", [4, 7.3, 60, 999])
@pytest.mark.parametrize("alpha", [0.05, 0.025])
def test_detectable_difference_has_the_power_that_it_claims(df, alpha):
    k = detectable(2.0, df, alpha=alpha) / 2.0
    edge = t.ppf(1 - alpha / 2, df)
    assert nct.sf(edge, df, k) + nct.cdf(-edge, df, k) == pytest.approx(0.8, abs=2e-3)


def test_holm_against_its_definition():
    p = [0.04, 0.001, 0.03, 0.5]
    assert holm(p) == pytest.approx([0.09, 0.004, 0.09, 0.5])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    with_missing = holm([0.01, math.nan])
    assert with_missing[0] == 0.02
    assert math.isnan(with_missing[1])


@pytest.mark.parametrize("seed_sd", [0.0, 0.05, 1.0])
def test_false_positives_stay_near_five_per_cent(seed_sd):
    random = np.random.default_rng(11)
    studies, S, N = 2000, 5, 50
    n = random.integers(1, 60, (studies, N))
    per_token = (
        random.normal(0, 1, (studies, S, 1)) * seed_sd
        + random.normal(0, 0.3, (studies, 1, N))
        + random.normal(0, 0.3, (studies, S, N))
    )
    result = crossed(per_token * n[:, None, :], n)
    rate = float((p_value(result.value, np.sqrt(result.variance), result.df, result.skewness) <= 0.05).mean())
    assert 0.01 < rate < 0.068  # 2,000 studies: the standard error of a true 5 % is 0.5 %


def long_answers(random, studies: int, S: int, N: int):
    """Differences whose size per token grows with the answer's length; the token mean of the population is 0."""
    r, p = 2, 0.03
    n = 1 + random.negative_binomial(r, p, size=(studies, N))
    mean, variance = 1 + r * (1 - p) / p, r * (1 - p) / p**2
    per_token = 0.2 * (n - (variance + mean**2) / mean) / mean
    return (per_token[:, None, :] + random.normal(0, 0.02, (studies, S, N))) * n[:, None, :], n


def test_effects_that_grow_with_length_do_not_inflate():
    x, n = long_answers(np.random.default_rng(3), 3000, 5, 50)
    result = crossed(x, n)
    error = np.sqrt(result.variance)
    straight = float((p_value(result.value, error, result.df) <= 0.05).mean())
    bent = float((p_value(result.value, error, result.df, result.skewness) <= 0.05).mean())
    assert straight > 0.065  # what the skewness costs a plain t
    assert bent < 0.06


def test_rows_of_one_prompt_count_once():
    random = np.random.default_rng(5)
    studies, S, prompts, N = 1500, 5, 60, 240
    groups = np.sort(random.integers(0, prompts, N))
    n = random.integers(5, 60, N)
    per_token = random.normal(0, 0.3, (studies, 1, prompts))[:, :, groups] + random.normal(
        0, 0.1, (studies, S, N)
    )
    x = per_token * n
    rows = crossed(x, n)
    units = crossed(*by_cluster(x, n, groups))
    naive = float((p_value(rows.value, np.sqrt(rows.variance), rows.df, rows.skewness) <= 0.05).mean())
    honest = float((p_value(units.value, np.sqrt(units.variance), units.df, units.skewness) <= 0.05).mean())
    assert naive > 0.25
    assert honest < 0.065


def test_a_row_written_twice_adds_nothing_once_both_are_one_cluster():
    x, n = drawn(4)
    once = estimate(x, n)
    twice = estimate(np.repeat(x, 2, axis=1), np.repeat(n, 2), clusters=np.repeat(np.arange(len(n)), 2))
    assert (twice.value, twice.error, twice.df) == pytest.approx((once.value, once.error, once.df))
    assert (twice.examples, twice.units, once.units) == (80, 40, 40)


def test_clusters_need_not_lie_together():
    x, n = drawn(6, N=9)
    labels = np.array([3, 1, 3, 2, 2, 1, 3, 9, 9])
    order = np.argsort(labels, kind="stable")
    one, other = estimate(x, n, clusters=labels), estimate(x[:, order], n[order], clusters=labels[order])
    assert one.error == pytest.approx(other.error)
    assert one.units == 4


@pytest.mark.parametrize("skewness", [-0.6, -0.1, 0.0, 0.3, 1.0])
def test_interval_and_p_are_of_one_test(skewness):
    random = np.random.default_rng(0)
    for value in random.normal(0, 3, 50):
        one = Estimate(
            value=float(value), error=1.0, df=9.0, seeds=5, examples=50, seed_share=0.5, example_share=0.5,
            residual_share=0.0, skewness=skewness,
        )  # fmt: skip
        for level in (0.95, 0.975):
            low, high = one.interval(level)
            assert (one.p < 1 - level) == (low > 0 or high < 0)


def test_the_bend_straightens_a_skewed_mean():
    # Means of 30 exponential numbers: the t statistic is far too often low, the straightened one is not.
    random = np.random.default_rng(8)
    x = random.exponential(size=(20_000, 30)) - 1
    error = x.std(axis=1, ddof=1) / math.sqrt(30)
    skewness = ((x - x.mean(axis=1, keepdims=True)) ** 3).sum(axis=1) / 30**3 / error**3
    plain = x.mean(axis=1) / error
    low = float((plain < -t.ppf(0.975, 29)).mean())
    low_bent = float((straighten(plain, skewness) < -t.ppf(0.975, 29)).mean())
    assert low > 0.05
    assert low_bent < 0.043
    assert float(bend(straighten(-2.5, 0.7), 0.7)) == pytest.approx(-2.5)


def test_runs_that_came_apart_while_tuning_widen_the_interval():
    x, n = drawn(2)
    plain = estimate(x, n)
    widened = estimate(x, n, run_variance=40 * 5 * plain.seed_share, run_df=6)
    assert widened.value == plain.value
    assert widened.seed_share == plain.seed_share  # what the evaluation seeds say stays to be read
    assert widened.error > 2 * plain.error
    assert estimate(x, n, run_variance=0.0, run_df=6).error == plain.error  # tuning never narrows


def test_the_rate_share_is_added():
    x, n = drawn(2)
    plain, with_rate = estimate(x, n), estimate(x, n, rate_share=0.3)
    assert with_rate.error**2 == pytest.approx(plain.error**2 + 0.3)


def test_bonferroni_p_and_the_interval_agree():
    assert bonferroni([0.01, 0.03, 0.6]) == [0.03, 0.09, 1.0]
    with_missing = bonferroni([0.01, math.nan])
    assert with_missing[0] == 0.02
    assert math.isnan(with_missing[1])


def test_a_skewed_estimate_prints_a_difference_that_it_finds():
    # Power at the printed difference, both directions, where long answers skew the difference.
    random = np.random.default_rng(21)
    x, n = long_answers(random, 100, 5, 60)
    hits = 0
    for study, tokens in zip(x, n, strict=True):
        size = estimate(study, tokens).detectable()
        hits += estimate(study + random.choice([-1.0, 1.0]) * size * tokens, tokens).p <= 0.05
    assert hits >= 70  # of 100; 80 are meant
