"""Runs that came apart are named, and only they."""

from __future__ import annotations

import numpy as np

from loratlas.study.results.came_apart import came_apart

SEEDS = (11, 12, 13, 14, 15)
RATES = {"full": 1e-3, "attention": 2e-3}


def runs(random):
    shared = random.normal(0, 0.05, 5)
    return {arm: 2 + shared + random.normal(0, 0.004, 5) for arm in RATES}


def found(losses, delta=0.01):
    return came_apart(losses, seeds=SEEDS, rates=RATES, phase="evaluation", delta=delta)


def test_what_a_seed_gives_to_all_arms_is_no_coming_apart():
    assert sum(len(found(runs(np.random.default_rng(seed)))) for seed in range(200)) < 8


def test_a_bad_run_is_named_with_its_size():
    losses = runs(np.random.default_rng(1))
    losses["full"][2] += 0.3
    (run,) = found(losses)
    assert (run.arm, run.seed, run.lr, run.phase) == ("full", 13, 1e-3, "evaluation")
    assert 0.2 < run.above < 0.4
    assert "seed 13 of full is an outlier" in run.sentence
    assert "widens the interval" in run.sentence


def test_what_is_smaller_than_the_margin_is_left_alone():
    losses = runs(np.random.default_rng(1))
    losses["full"][2] += 0.3
    assert not found(losses, delta=0.5)


def test_missing_runs_are_no_error():
    losses = runs(np.random.default_rng(2))
    losses["full"][0] = np.nan
    assert found(losses) == []
    assert found({"full": np.full(5, np.nan), "attention": losses["attention"]}) == []
