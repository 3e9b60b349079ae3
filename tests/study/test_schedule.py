"""What a study needs next: equal tuning, everyone's grid extended, fresh seeds."""

from __future__ import annotations

import math

import pytest

from loratlas.study.execution.ledger import Key
from loratlas.study.execution.schedule import BASE, schedule
from loratlas.study.spec.rates_and_seeds import seeds
from loratlas.study.spec.spec_file import parse_spec

SPEC = parse_spec(
    {
        "model": "demo:llama-mini",
        "data": {"train": "demo:facts-300"},
        "arms": {"full": "all:8", "attention": "attention:8"},
        "learning_rates": [1e-3, 3e-3, 9e-3],
    }
)


def run(loss, spec=SPEC, limit=10_000):
    """Finish what is pending, with the losses of ``loss(key)``, until nothing is left."""
    finished = {}
    for _ in range(limit):
        state = schedule(spec, finished)
        if state.complete:
            return state, finished
        for key in state.pending:
            value = loss(key)
            finished[key] = {"nll": None if math.isinf(value) else value, "diverged": math.isinf(value)}
    raise AssertionError("the schedule never ends")


def bowl(best):
    """A loss that is smallest at the rate ``best[arm]``."""
    return lambda key: 2.0 if key == BASE else abs(math.log(key.lr / best[key.arm]))


def test_an_optimum_inside_is_chosen_and_trained_again_on_fresh_seeds():
    state, finished = run(bowl({"full": 3e-3, "attention": 3e-3}))
    tuning, evaluation = seeds(SPEC)
    assert state.chosen == {"full": 3e-3, "attention": 3e-3}
    assert not state.at_edge
    assert len(finished) == state.planned == 1 + 2 * 3 * 2 + 2 * 5
    for key in finished:
        expected = {"base": {0}, "tuning": set(tuning), "evaluation": set(evaluation)}[key.phase]
        assert key.seed in expected


def test_one_arms_edge_extends_the_grid_of_all():
    state, finished = run(bowl({"full": 3e-3, "attention": 27e-3}))
    assert state.rates == (1e-3, 3e-3, 9e-3, 27e-3, 81e-3)
    assert state.chosen == {"full": 3e-3, "attention": 27e-3}
    assert not state.at_edge
    for arm in SPEC.arms:
        assert {k.lr for k in finished if k.phase == "tuning" and k.arm == arm} == set(state.rates)


def test_an_edge_that_stays_is_told():
    state, _ = run(bowl({"full": 1e-9, "attention": 3e-3}))
    assert state.at_edge == {"full"}
    assert len(state.rates) == 5
    assert state.chosen["full"] == state.rates[0]


def test_both_sides_extend():
    state, _ = run(bowl({"full": 3.3e-4, "attention": 27e-3}))
    assert (state.rates[0], state.rates[-1]) == (pytest.approx(1e-3 / 9, rel=1e-5), pytest.approx(81e-3))
    assert not state.at_edge


def test_a_diverged_seed_rules_its_rate_out():
    tuning, _ = seeds(SPEC)

    def loss(key):
        if key.phase == "tuning" and key.lr == 3e-3 and key.seed == tuning[0]:
            return math.inf
        return bowl({"full": 3e-3, "attention": 3e-3})(key)

    state, _ = run(loss)
    assert 3e-3 not in state.chosen.values()


def test_every_rate_diverging_ends_undetermined_and_not_in_a_circle():
    state, _ = run(lambda key: math.inf if key.phase != "base" else 2.0)
    assert state.at_edge == {"full", "attention"}


def test_one_rate_alone_is_an_edge_on_both_sides():
    spec = parse_spec({**SPEC.to_json(), "learning_rates": [3e-3], "tuning": {"extensions": 0}})
    state, finished = run(bowl({"full": 3e-3, "attention": 3e-3}), spec)
    assert state.at_edge == {"full", "attention"}
    assert len([key for key in finished if key.phase == "tuning"]) == 4


def test_the_next_run_depends_on_results_and_not_on_their_order():
    loss = bowl({"full": 3e-3, "attention": 27e-3})
    _, finished = run(loss)
    halves = [dict(list(finished.items())[:k]) for k in (0, 3, 14, 20)]
    for half in halves:
        state = schedule(SPEC, dict(reversed(half.items())))
        assert state.pending == schedule(SPEC, half).pending
        assert not set(state.pending) & set(half)
    assert Key(phase="base") in schedule(SPEC, {}).pending
