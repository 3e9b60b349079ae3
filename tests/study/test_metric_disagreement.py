"""Arms that change places with the definition: found, told with a p, and never called established too soon."""

from __future__ import annotations

import math

import numpy as np
import pytest

from loratlas.study.results.estimator import estimate
from loratlas.study.results.findings import judge
from loratlas.study.results.metric_disagreement import Judged, Measure, by_measure, compare, measures, ranks

TASK = Measure(name="exact_match", unit="share", higher_is_better=True)


def arm(
    name: str,
    short: float,
    long: float,
    *,
    noise: float = 0.01,
    rows: int = 48,
    below: int = 30,
    seeds: int = 5,
) -> Judged:
    """An arm whose loss on short and on long examples is shifted from one that all arms share."""
    shared = np.random.default_rng(7)
    n = shared.integers(5, 60, rows)
    base = shared.gamma(4, 0.5, rows)
    own = np.random.default_rng([len(name), *name.encode()])
    summed = {
        seed: n * (base + np.where(n < below, short, long) + own.normal(0, noise, rows))
        for seed in range(seeds)
    }
    return Judged(name=name, summed=summed, tokens=n)


def test_every_difference_is_the_difference_of_the_values():
    one, two = arm("a", 0.0, 0.1), arm("b", 0.12, 0.0)
    for measure in measures():
        values = measure.value(one), measure.value(two)
        result = measure.difference(one, two)
        assert result is not None
        assert values[0] - values[1] == pytest.approx(result.value, abs=1e-12)


def test_the_token_mean_is_the_estimator_of_findings():
    one, two = arm("a", 0.0, 0.1), arm("b", 0.12, 0.0)
    summed = np.stack([one.summed[s] - two.summed[s] for s in range(5)])
    assert measures()[0].difference(one, two) == estimate(summed, one.tokens)


def test_a_planted_reversal_is_found_with_its_size_and_established():
    # Better on short examples, worse on long ones: the token mean sees the long, the example mean the short.
    one, two = arm("a", 0.0, 0.12), arm("b", 0.3, 0.0)
    outcome = ranks([one, two], measures())
    assert outcome["compared"] == 4
    (pair,) = [pair for pair in outcome["opposed"] if pair["by"] == "example_mean"]
    assert (pair["first"], pair["second"]) == ("a", "b")
    assert pair["loss"]["difference"] > 0 > pair["other"]["difference"]
    n = one.tokens
    assert pair["other"]["difference"] == pytest.approx(
        np.mean([(one.summed[s] - two.summed[s]) / n for s in range(5)])
    )
    orders = {order["by"]: [each["name"] for each in order["arms"]] for order in outcome["orders"]}
    assert orders["token_mean"] == ["b", "a"]
    assert orders["example_mean"] == ["a", "b"]


def test_a_reversal_is_established_only_if_each_sign_is():
    one, two = arm("a", 0.0, 0.12, rows=400), arm("b", 0.25, 0.0, rows=400)
    outcome = {pair["by"]: pair for pair in ranks([one, two], measures())["opposed"]}
    assert outcome["example_mean"]["established"]
    assert outcome["example_mean"]["p"] == pytest.approx(
        max(outcome["example_mean"]["loss"]["p"], outcome["example_mean"]["other"]["p"]) / 2
    )
    assert "is established" in outcome["example_mean"]["sentence"]
    # The same signs with noise that drowns one of them: told, and not established.
    noisy = [arm("a", 0.0, 0.06, noise=1.0, rows=24), arm("b", 0.05, 0.0, noise=1.0, rows=24)]
    for pair in ranks(noisy, measures())["opposed"]:
        assert not pair["established"]
        assert "not established" in pair["sentence"] or "no test" in pair["sentence"]


def test_a_median_is_never_established():
    one, two = arm("a", 0.0, 0.3, rows=400, below=40), arm("b", 0.3, 0.0, rows=400, below=40)
    (pair,) = [pair for pair in ranks([one, two], measures())["opposed"] if pair["by"] == "median"]
    assert (pair["p"], pair["established"], pair["other"]["ci"]) == (None, False, [None, None])
    assert "no test" in pair["sentence"]


def test_equal_arms_oppose_nothing():
    one = arm("a", 0.0, 0.0)
    twin = Judged(name="b", summed=one.summed, tokens=one.tokens)
    outcome = ranks([one, twin], measures())
    assert outcome["opposed"] == []
    assert outcome["compared"] == 4


def test_a_task_metric_counts_the_other_way():
    """Higher is better: the arm with the higher loss and the higher score is a reversal, the lower score is none."""
    scores = {name: {s: np.tile([float(name == "b"), 1.0], 30) for s in range(5)} for name in ("a", "b")}
    arms = [
        Judged(name=a.name, summed=a.summed, tokens=a.tokens, tasks={TASK.name: scores[a.name]})
        for a in (arm("a", 0.0, 0.0), arm("b", 0.3, 0.3))
    ]
    by = measures(tasks=[TASK])
    (pair,) = ranks(arms, by)["opposed"]
    assert pair["by"] == "exact_match"
    assert pair["established"]
    assert pair["other"]["difference"] == pytest.approx(-0.5)
    swapped = [
        Judged(name=a.name, summed=a.summed, tokens=a.tokens, tasks={TASK.name: scores[other]})
        for a, other in zip(arms, ("b", "a"), strict=True)
    ]
    assert ranks(swapped, by)["opposed"] == []


def test_a_label_a_row_has_one_loss_and_the_task_is_held_against_it():
    """With n = 1 everywhere all definitions agree; the sentence speaks of rows."""
    n = len(arm("a", 0.0, 0.0).summed[0])
    scores = {"a": np.zeros((5, n)), "b": np.tile([1.0, 0.0, 1.0], (5, n // 3))}
    arms = [
        Judged(
            name=name,
            summed=dict(enumerate(arm(name, 0.0, shift).summed.values())),
            tokens=np.ones(n, dtype=np.int64),
            tasks={TASK.name: dict(enumerate(scores[name]))},
        )
        for name, shift in (("a", 0.0), ("b", 0.4))
    ]
    outcome = ranks(arms, measures(tasks=[TASK], per="row"))
    assert [m["unit"] for m in outcome["measures"]] == ["row_loss", "share"]
    assert outcome["compared"] == 1
    (pair,) = outcome["opposed"]
    assert pair["sentence"].startswith("The mean loss puts a before b (")
    assert "nats per row), the exact match puts b before a (" in pair["sentence"]


def test_a_perplexity_beyond_the_range_of_numbers_is_left_out():
    one = arm("a", 0.0, 0.0)
    wild = Judged(
        name="w", summed={s: x + 900 * one.tokens for s, x in one.summed.items()}, tokens=one.tokens
    )
    outcome = ranks([one, wild], measures())
    assert {pair.by.name for pair in compare([one, wild], measures())} == {
        "example_mean",
        "batch_mean_8",
        "median",
    }
    by = {order["by"]: [each["name"] for each in order["arms"]] for order in outcome["orders"]}
    assert by["mean_example_perplexity"] == ["a"]


def test_arms_without_runs_are_left_out():
    nothing = Judged(name="x", summed={}, tokens=None)
    outcome = ranks([arm("a", 0.0, 0.0), nothing], measures())
    assert (outcome["compared"], outcome["opposed"]) == (0, [])
    assert by_measure(nothing, arm("a", 0.0, 0.0), measures(), level=0.95) == []


def test_reversals_of_equal_arms_are_rarely_called_established():
    """Noise only: at nominal 5 % after Holm, of 200 studies at most a few may call a reversal established."""
    random = np.random.default_rng(3)
    n = random.integers(5, 60, 40)
    wrong = 0
    for _ in range(200):
        made = []
        for name in "ab":
            of_seed, of_example = random.normal(0, 0.05, (5, 1)), random.normal(0, 0.1, (1, 40))
            losses = n * (2.0 + of_seed + of_example + random.normal(0, 0.05, (5, 40)))
            made.append(Judged(name=name, summed=dict(enumerate(losses)), tokens=n))
        wrong += any(pair["established"] for pair in ranks(made, measures())["opposed"])
    assert wrong <= 10


def test_the_finding_s_own_level_is_used():
    one, two = arm("a", 0.0, 0.1), arm("b", 0.12, 0.0)
    wide, narrow = (by_measure(one, two, measures(), level=level)[0]["ci"] for level in (0.99, 0.9))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert not math.isnan(wide[0])
    assert judge([], versus="x", delta=0.01, reach="") == []
