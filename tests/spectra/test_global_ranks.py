"""The distribution of a budget over singular directions: optimal where that can be checked, and never over it."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratlas.spectra.global_ranks import keep_largest

spectra = st.lists(
    st.tuples(
        st.lists(st.floats(0.01, 10), min_size=1, max_size=4).map(lambda v: sorted(v, reverse=True)),
        st.integers(1, 9),
    ),
    min_size=1,
    max_size=4,
)


def best(values, costs, budget) -> float:
    """The most that any ranks within the budget keep, by trying all of them."""
    return max(
        sum(s**2 for v, r in zip(values, ranks, strict=True) for s in v[:r])
        for ranks in product(*(range(len(v) + 1) for v in values))
        if sum(r * c for r, c in zip(ranks, costs, strict=True)) <= budget
    )


@given(spectra, st.integers(0, 120))
def test_nothing_within_the_budget_keeps_more_than_the_bound(sites, budget):
    values, costs = [v for v, _ in sites], [c for _, c in sites]
    kept = keep_largest(values, costs, budget=budget)
    most = best(values, costs, budget)
    assert kept.spent == sum(r * c for r, c in zip(kept.ranks, costs, strict=True)) <= budget
    assert kept.kept <= most * (1 + 1e-9)
    assert most <= kept.bound * (1 + 1e-9)


@given(spectra, st.integers(0, 120), st.integers(1, 9))
def test_where_all_sites_cost_alike_it_is_the_optimum(sites, budget, cost):
    values = [v for v, _ in sites]
    kept = keep_largest(values, [cost] * len(values), budget=budget)
    assert kept.kept == pytest.approx(best(values, [cost] * len(values), budget))


@given(spectra)
def test_for_what_its_first_directions_cost_it_is_the_optimum(sites):
    values, costs = [v for v, _ in sites], [c for _, c in sites]
    steps = sorted((-(s**2) / c, c) for v, c in sites for s in v)
    spent = 0
    for _, cost in steps:
        spent += cost
        kept = keep_largest(values, costs, budget=spent)
        assert kept.kept == pytest.approx(best(values, costs, spent))


@given(spectra, st.integers(0, 120), st.integers(0, 40))
def test_a_larger_budget_never_keeps_less(sites, budget, more):
    values, costs = [v for v, _ in sites], [c for _, c in sites]
    small, large = (keep_largest(values, costs, budget=b) for b in (budget, budget + more))
    assert large.kept >= small.kept * (1 - 1e-12)


def test_what_is_zero_is_never_bought():
    kept = keep_largest([[2.0, 0.0], [0.0]], [3, 1], budget=100)
    assert (kept.ranks, kept.spent, kept.distance) == ((1, 0), 3, 0.0)
