"""Budgets spent by gain: exact where it can be, within one step otherwise, and a reason for every rank."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toy import anatomy, decoder, site

from loratlas.errors import BudgetError, SettingsError
from loratlas.placement.allocate import Limits, allocate
from loratlas.placement.budget import cost_of_ranks
from loratlas.placement.plan import Plan, place, plan_of_allocation

SIZES = ((8, 8), (8, 16), (24, 8))


def toy(shapes):
    sites = [site(f"h.{i}.q.weight", "attn.q", shape, layer=i) for i, shape in enumerate(shapes)]
    return anatomy(sites, layers=len(sites))


falling = st.lists(st.floats(0, 10), min_size=3, max_size=3).map(lambda g: sorted(g, reverse=True))
anything = st.lists(st.floats(0, 10), min_size=3, max_size=3)


def best(model, gains, allowed):
    """The most that any table of ranks within a budget gains: all of them are tried."""
    result = 0.0
    for ranks in product(range(4), repeat=len(model.sites)):
        cost = sum(s.lora_parameters(r) for s, r in zip(model.sites, ranks, strict=True))
        if cost <= allowed:
            result = max(result, sum(sum(gains[s.path][:r]) for s, r in zip(model.sites, ranks, strict=True)))
    return result


@settings(deadline=None, max_examples=120)
@given(st.lists(falling, min_size=3, max_size=3), st.integers(16, 300))
def test_concave_gains_are_spent_exactly(curves, allowed):
    model = toy(SIZES)
    gains = {s.path: curve for s, curve in zip(model.sites, curves, strict=True)}
    if not any(g > 0 for curve in curves for g in curve):
        return
    allocation = allocate(model, gains, f"params={allowed}")
    assert allocation.spent == cost_of_ranks(model, allocation.ranks, "params") <= allowed
    assert allocation.gain == pytest.approx(
        sum(sum(gains[path][:rank]) for path, rank in allocation.ranks.items())
    )
    # With unlike prices the budget's end is a knapsack: within the gain of one step of the best.
    largest = max(g for curve in curves for g in curve)
    assert allocation.gain >= best(model, gains, allowed) - largest - 1e-9


@settings(deadline=None, max_examples=80)
@given(st.lists(falling, min_size=3, max_size=3), st.integers(1, 9))
def test_equal_prices_leave_no_remainder(curves, steps):
    model = toy([(8, 8)] * 3)
    gains = {s.path: curve for s, curve in zip(model.sites, curves, strict=True)}
    if not any(g > 0 for curve in curves for g in curve):
        return
    allocation = allocate(model, gains, f"params={16 * steps}")
    assert allocation.gain == pytest.approx(best(model, gains, 16 * steps))


@settings(deadline=None, max_examples=80)
@given(st.lists(falling, min_size=3, max_size=3), st.integers(1, 9))
@example([[2.0, 0.0, 0.0], [3.0, 0.0, 0.0], [4.0, 0.0, 0.0]], 1)  # equal gain per parameter at all three
def test_what_has_been_spent_could_not_be_spent_better(curves, taken):
    """After any number of steps, best first, of equals the dearest: no table of the same cost gains more."""
    model = toy(SIZES)
    gains = {s.path: curve for s, curve in zip(model.sites, curves, strict=True)}
    price = {s.path: s.lora_parameters(1) for s in model.sites}
    order = sorted(
        ((g / price[path], price[path], path, g) for path, curve in gains.items() for g in curve if g > 0),
        reverse=True,
    )[:taken]
    if not order:
        return
    spent = sum(price[path] for *_, path, _ in order)
    allocation = allocate(model, gains, f"params={spent}")
    assert allocation.gain >= best(model, gains, spent) - 1e-9


@settings(deadline=None, max_examples=60)
@given(st.lists(anything, min_size=3, max_size=3), st.integers(16, 300))
def test_gains_that_rise_are_taken_together(curves, allowed):
    model = toy(SIZES)
    gains = {s.path: curve for s, curve in zip(model.sites, curves, strict=True)}
    if not any(g > 0 for curve in curves for g in curve):
        return
    try:
        allocation = allocate(model, gains, f"params={allowed}")
    except BudgetError:
        return
    whole = sum(sum(curve) for curve in curves)
    assert 0 < allocation.gain <= whole + 1e-9
    assert allocation.spent <= allowed


def test_limits_hold():
    model = decoder(4)
    gains = {s.path: [1.0 / (1 + j) for j in range(24)] for s in model.sites if s.role.startswith("attn")}
    allocation = allocate(model, gains, "params=20k", Limits(floor=2, ceiling=6, multiple=2))
    assert set(allocation.ranks) == set(gains)
    assert {rank % 2 for rank in allocation.ranks.values()} == {0}
    assert min(allocation.ranks.values()) >= 2
    assert max(allocation.ranks.values()) == 6
    eight = allocate(model, gains, "params=3k", Limits(multiple=8))
    assert set(eight.ranks.values()) == {8}


def test_whole_layers_go_together():
    model = decoder(4)
    gains = {
        s.path: [float(s.layer + 1)] * 4 for s in model.sites if s.layer is not None and s.role[:4] == "attn"
    }
    layer = sum(s.lora_parameters(1) for s in model.sites if s.layer == 3 and s.path in gains)
    allocation = allocate(model, gains, f"params={5 * layer}", Limits(whole_layers=True))
    by_layer = {
        number: {rank for path, rank in allocation.ranks.items() if f".{number}." in path}
        for number in range(4)
    }
    assert by_layer == {0: set(), 1: set(), 2: {1}, 3: {4}}
    assert "counted with its whole layer" in allocation.reasons["model.layers.3.attn.q.weight"]


def test_top_layers_only():
    model = decoder(8)
    gains = {s.path: [1.0] for s in model.sites if s.layer is not None}
    allocation = allocate(model, gains, "params=100k", Limits(top=2))
    assert allocation.lowest == 6
    assert {path.split(".")[2] for path in allocation.ranks} == {"6", "7"}


def test_a_budget_of_time_pays_for_a_backward_pass_that_ends_early():
    model = decoder(8)
    gains = {s.path: [1.0, 0.5] for s in model.sites if s.layer is not None}
    near = allocate(model, gains, "time=all@top/4:1")
    far = allocate(model, gains, "time=all:3")
    assert near.lowest is not None
    assert far.lowest is not None
    assert near.lowest > far.lowest == 0
    for found in (near, far):
        assert found.spent == cost_of_ranks(model, found.ranks, "time") <= found.allowed


def held(ranks: dict[str, int]) -> int:
    """Peak bytes as of a step that keeps 1,000 for every layer above the lowest adapter, and 4 per parameter."""
    layers = [int(path.split(".")[2]) for path in ranks]
    sites = {s.path: s for s in decoder(8).sites}
    return 1000 * (8 - min(layers)) + 4 * sum(sites[path].lora_parameters(r) for path, r in ranks.items())


def test_a_budget_of_memory_is_what_somebody_measures():
    model = decoder(8)
    gains = {s.path: [1.0, 0.5] for s in model.sites if s.layer is not None}
    near, far = (allocate(model, gains, f"memory={size}", memory=held) for size in (4000, 20_000))
    assert near.lowest is not None
    assert near.lowest > 4
    assert far.lowest == 0
    for found in (near, far):
        assert found.spent == held(found.ranks) <= found.allowed


def test_every_row_says_why():
    model = decoder(2)
    gains = {s.path: [4.0 / (1 + s.layer), 1.0] for s in model.sites if s.role in ("attn.q", "attn.v")}
    allocation = allocate(model, gains, "params=120")
    plan = plan_of_allocation(model, allocation)
    assert plan.ranks == allocation.ranks
    assert plan.why is not None
    assert all("per 1,000 trainable parameters; the budget ended at" in why for why in plan.why)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert place(model, plan.text).ranks == plan.ranks
    assert set(allocation.left_out) == set(gains) - set(allocation.ranks)
    assert all("per 1,000" in why for why in allocation.left_out.values())
    # A plan that was written keeps its contract.
    assert all("why" not in row for row in place(model, plan.text).to_json()["sites"])


def test_what_cannot_be():
    model = decoder(2)
    gains = {s.path: [1.0] for s in model.sites if s.role == "attn.v"}
    with pytest.raises(BudgetError, match="at least 24") as caught:
        allocate(model, gains, "params=23")
    assert caught.value.exit_code == 2
    with pytest.raises(BudgetError, match="every site having rank 2"):
        allocate(model, gains, "params=50", Limits(floor=2))
    with pytest.raises(SettingsError, match="no signal"):
        allocate(model, {path: [0.0] for path in gains}, "params=1k")
    with pytest.raises(BudgetError, match="bytes at the peak"):
        allocate(model, gains, "memory=100", memory=lambda ranks: 1000 + sum(ranks.values()))
    for wrong in ({"floor": -1}, {"multiple": 0}, {"ceiling": 4, "multiple": 8}, {"floor": 3, "multiple": 2}):
        with pytest.raises(SettingsError):
            Limits(**wrong)
