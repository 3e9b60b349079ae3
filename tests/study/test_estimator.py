"""The estimator: against its formula written out slowly, its symmetries, and its coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import nct, t

from loratlas.study.results.estimator import crossed, detectable, estimate, holm, p_value


def slow(x, n):
    """The formula of DESIGN, one sum at a time: value, variance, degrees of freedom."""
    S, N = len(x), len(n)
    mean_n = sum(n) / N
    z = [[n[i] * (x[s][i] / n[i]) / mean_n for i in range(N)] for s in range(S)]
    D = sum(map(sum, z)) / (S * N)
    r = [[z[s][i] - D * n[i] / mean_n for i in range(N)] for s in range(S)]
    rows = [sum(r[s]) / N for s in range(S)]
    columns = [sum(r[s][i] for s in range(S)) / S for i in range(N)]
    grand = sum(rows) / S
    a = sum((v - grand) ** 2 for v in rows) / (S - 1) / S
    b = sum((v - grand) ** 2 for v in columns) / (N - 1) / N
    square = sum((r[s][i] - rows[s] - columns[i] + grand) ** 2 for s in range(S) for i in range(N))
    c = square / ((S - 1) * (N - 1)) / (S * N)
    V = max(a + b - c, a, b)
    df = V**2 / (a**2 / (S - 1) + b**2 / (N - 1) + c**2 / ((S - 1) * (N - 1)))
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
    found = estimate(x, n)
    value, variance, df = slow(x.tolist(), n.tolist())
    assert found.value == pytest.approx(value, rel=1e-12)
    assert found.error**2 == pytest.approx(variance, rel=1e-12)
    assert found.df == pytest.approx(df, rel=1e-12)


def test_by_hand():
    # Two seeds, two examples of one token each: z = x. D = 2, residuals ±1 by seed only.
    found = estimate(np.array([[1.0, 1.0], [3.0, 3.0]]), np.array([1, 1]))
    assert found.value == 2.0
    # Seed means −1 and 1: s² = 2, over S = 2 gives 1; no example variance, no residual.
    assert (found.seed_share, found.example_share, found.residual_share) == (1.0, 0.0, 0.0)
    assert (found.error, found.df) == (1.0, 1.0)
    low, high = found.interval(0.95)
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
        found = estimate(x, n)
        parts = max(found.seed_share, found.example_share)
        assert found.error**2 >= parts * (1 - 1e-12)
        floored += found.seed_share + found.example_share - found.residual_share < parts
    assert floored > 20


@given(st.integers(0, 10_000))
def test_labels_swapped_change_the_sign_and_nothing_else(seed):
    x, n = drawn(seed)
    one, other = estimate(x, n), estimate(-x, n)
    assert other.value == -one.value
    assert (other.error, other.df, other.p) == (one.error, one.df, one.p)


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
    found = estimate(np.zeros((5, 30)), np.full(30, 7))
    assert (found.value, found.error, found.p, found.interval(0.95)) == (0.0, 0.0, 1.0, (0.0, 0.0))


def test_one_seed_gives_no_interval():
    found = estimate(np.ones((1, 30)), np.full(30, 2))
    assert found.value == 0.5
    assert math.isnan(found.error)
    assert math.isnan(found.p)


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
    found = crossed(per_token * n[:, None, :], n)
    rate = float((p_value(found.value, np.sqrt(found.variance), found.df) <= 0.05).mean())
    assert 0.01 < rate < 0.068  # 2,000 studies: the standard error of a true 5 % is 0.5 %
