"""Shares, steps and differences on losses whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from benchmarks.dynamic.judging import judge
from benchmarks.dynamic.judging.judge import (
    CaseLosses,
    at_equal_cost,
    best_by_others,
    chosen_elsewhere,
    difference,
    mean_difference,
    noise_floor,
    share_lost,
    steps_for,
    steps_saved,
)

TOKENS = np.array([2.0, 4.0, 6.0])


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(judge, "DRAWS", 200)


def table(*by_seed: float) -> np.ndarray:
    """Summed losses [S, 3] with these token means."""
    return np.array(by_seed)[:, None] * TOKENS


def case(**more: object) -> CaseLosses:
    losses = {
        "all": table(2.0, 2.2, 2.1),
        "auto": table(1.9, 2.1, 2.0),
        "best": table(1.8, 2.0, 1.9),
    }
    outcome = {
        "losses": losses,
        "tokens": TOKENS,
        "steps": 100,
        "curve": {100: losses["all"], 200: table(1.6, 1.8, 1.7)},
    }
    return CaseLosses(**(outcome | more))  # pyright: ignore[reportArgumentType]


def test_a_difference_is_that_of_token_means():
    result = difference(case(), "auto")
    assert result.value == pytest.approx(-0.1)
    assert result.low <= result.value <= result.high


def test_cases_count_alike_in_the_mean_and_its_interval_is_students():
    worse = case(losses={"all": table(4.0, 4.0), "auto": table(4.3, 4.3)}, curve={100: table(4.0, 4.0)})
    result = mean_difference([case(), worse], "auto")
    assert result.value == pytest.approx(0.1)  # of -0.1 and 0.3
    assert result.high - result.value == pytest.approx(12.7062 * 0.2, rel=1e-4)  # t of 1 degree, s / √2 = 0.2
    assert math.isnan(mean_difference([worse], "auto").low)


def test_half_of_the_way_from_all_to_the_best_is_half_lost():
    result = share_lost([case()], ["auto"])
    assert result.value == pytest.approx(0.5)
    assert result.low == pytest.approx(0.5)
    assert result.high == pytest.approx(0.5)
    assert share_lost([case()], ["all"]).value == pytest.approx(1.0)


def test_shares_pool_by_nats_and_not_by_cases():
    wide = case(losses={"all": table(4.0, 4.0), "auto": table(3.0, 3.0)}, curve={100: table(4.0, 4.0)})
    # Lost: 0.1 + 0; to lose: 0.2 + 1.
    assert share_lost([case(), wide], ["auto", "auto"]).value == pytest.approx(0.1 / 1.2)


def test_a_case_in_which_all_is_best_counts_in_sums_and_has_no_share_of_its_own():
    lost = case(losses={"all": table(2.0, 2.0), "auto": table(2.1, 2.1)}, curve={100: table(2.0, 2.0)})
    assert math.isnan(share_lost([lost], ["auto"]).value)
    result = share_lost([case(), case(), case(), lost], ["auto"] * 4)
    assert result.value == pytest.approx((0.3 + 0.1) / 0.6)
    # Without a scale in more than a tenth of the draws there is no interval, and no value either.
    assert math.isnan(share_lost([case(), lost], ["auto", "auto"]).value)


def test_the_best_is_chosen_on_the_other_seeds():
    # Each of the two is lucky once; the one that is best without the seed in question is the other one.
    losses = {"one": table(1.0, 2.0), "two": table(2.0, 1.0)}
    best = best_by_others(losses, TOKENS).sum(axis=1) / TOKENS.sum()
    assert best.tolist() == [2.0, 2.0]


def test_resampling_keeps_the_choice_of_the_best():
    drawn = case().resampled(np.random.default_rng(0))
    assert drawn.best_mean == pytest.approx(float(drawn.by_seed("best").mean()))


def test_steps_are_read_off_the_curve_of_all():
    assert steps_for(2.0, [100, 200], [2.1, 1.7]) == pytest.approx(100 * 2**0.25)
    assert steps_for(1.0, [100, 200], [2.1, 1.7]) == pytest.approx(200)  # the curve's end bounds it
    assert steps_for(2.3, [100, 200], [2.1, 1.7]) == pytest.approx(
        100 / 2**0.5
    )  # its first stretch is drawn on
    assert steps_for(9.0, [100, 200], [2.1, 1.7]) == pytest.approx(50)
    assert steps_for(1.9, [100, 200, 400], [2.1, 1.7, 1.8]) == pytest.approx(100 * 2**0.5)
    assert steps_saved(case(), "auto").value == pytest.approx(100 * 2**0.25 - 100)


def test_steps_and_nats_agree_on_what_is_undetermined():
    # D of 3 seeds is -0.1, 0.3 and -0.15: undetermined, and so are the steps.
    apart = case(losses={"all": table(2.0, 2.2, 2.1), "auto": table(1.9, 2.5, 1.95)})
    nats, steps = difference(apart, "auto"), steps_saved(apart, "auto")
    assert nats.low < 0 < nats.high
    assert steps.low < 0 < steps.high
    assert steps.low == pytest.approx(steps_for(2.1 + nats.high, [100, 200], [2.1, 1.7]) - 100)


def test_what_remains_when_all_has_trained_longer():
    assert at_equal_cost(case(), "auto", 0).value == pytest.approx(-0.1)
    assert at_equal_cost(case(), "auto", 100).value == pytest.approx(2.0 - 1.7)
    half = 100 * 2**0.5 - 100  # half of the way in the logarithm: all is at 1.9
    assert at_equal_cost(case(), "auto", half).value == pytest.approx(2.0 - 1.9)
    assert at_equal_cost(case(curve={100: case().losses["all"]}), "auto", 5).value == pytest.approx(-0.1)


def test_rows_of_one_prompt_count_once():
    random = np.random.default_rng(0)
    of_prompt = random.normal(size=8) + 0.1 * random.normal(size=(5, 8))  # what all seeds make of it, and one
    by_prompt = np.repeat(of_prompt, 4, axis=1)
    losses = {"all": np.full((5, 32), 2.0), "auto": 2.0 + by_prompt}
    rows = {"losses": losses, "tokens": np.ones(32), "curve": {100: losses["all"]}}
    alone, together = case(**rows), case(**rows, clusters=np.repeat(np.arange(8), 4))
    wide, narrow = difference(together, "auto"), difference(alone, "auto")
    assert wide.value == pytest.approx(narrow.value)
    assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)
    drawn = together.resampled(random).clusters
    assert drawn is None  # of a resampled case only values are asked, never intervals
    picked = together.resampled(random).losses["auto"].reshape(5, 8, 4)
    assert np.all(picked == picked[:, :, :1])  # all rows of a prompt, or none


def test_the_noise_floor_is_what_luck_is_worth():
    losses = {"all": table(3.0, 3.0), "one": table(1.0, 2.0), "two": table(2.0, 1.2)}
    # Cross-fitted: 2.0 and 2.0; luckiest mean 1.5.
    result = noise_floor([case(losses=losses, curve={100: losses["all"]})])
    assert result == pytest.approx((2.0 - 1.5) / (3.0 - 2.0))


def test_a_rule_is_chosen_on_the_other_cases():
    one = case(losses={"all": table(2.0, 2.0), "a": table(1.0, 1.0), "b": table(1.5, 1.5)})
    two = case(losses={"all": table(2.0, 2.0), "a": table(1.9, 1.9), "b": table(1.0, 1.0)})
    assert chosen_elsewhere([one, two], ["a", "b"]) == ["b", "a"]
