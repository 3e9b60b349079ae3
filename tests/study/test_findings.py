"""Verdicts: what the interval decides, what overrules it, and what the sentence says."""

from __future__ import annotations

import math

import pytest

from loratlas.study.results.estimator import Estimate
from loratlas.study.results.findings import Comparison, decide, judge, pareto


def estimate(value: float, error: float, *, seeds: int = 5, df: float = 30.0) -> Estimate:
    return Estimate(
        value=value,
        error=error,
        df=df,
        seeds=seeds,
        examples=1000,
        seed_share=math.nan,
        example_share=math.nan,
        residual_share=math.nan,
    )


def one(value: float, error: float, **more):
    problems, caveat = more.pop("problems", ()), more.pop("caveat", "")
    comparison = Comparison(
        arm="a", estimate=estimate(value, error, **more), problems=problems, caveat=caveat
    )
    return judge([comparison], versus="b", delta=0.01, reach="of a task")[0]


@pytest.mark.parametrize(
    ("value", "error", "verdict"),
    [
        (0.001, 0.002, "equivalent"),
        (-0.006, 0.001, "equivalent"),  # excludes 0, and lies inside the margin: too small to matter
        (-0.05, 0.01, "better"),
        (0.05, 0.01, "worse"),
        (0.05, 0.05, "undetermined"),
        (0.0, 0.0, "equivalent"),
    ],
)
def test_the_interval_decides(value, error, verdict):
    assert one(value, error).verdict == verdict


def test_edges_of_the_margin_do_not_count_as_inside():
    assert decide((-0.01, 0.0), delta=0.01) == "undetermined"
    assert decide((math.nan, math.nan), delta=0.01) == "undetermined"


@pytest.mark.parametrize("value", [-0.5, 0.0, 0.5])
def test_fewer_than_five_seeds_are_undetermined(value):
    found = one(value, 0.001, seeds=4)
    assert found.verdict == "undetermined"
    assert "4 evaluation seeds" in found.reason


@pytest.mark.parametrize("value", [-0.5, 0.0, 0.5])
def test_problems_of_the_protocol_overrule_the_interval(value):
    found = one(value, 0.001, problems=("1 of 5 evaluation runs of a diverged",))
    assert found.verdict == "undetermined"
    assert "diverged" in found.sentence


def test_more_comparisons_make_wider_intervals():
    several = [Comparison(arm=str(k), estimate=estimate(-0.022, 0.01)) for k in range(3)]
    alone = judge(several[:1], versus="b", delta=0.01, reach="")[0]
    among = judge(several, versus="b", delta=0.01, reach="")[0]
    assert alone.verdict == "better"
    assert among.verdict == "undetermined"
    assert among.level == pytest.approx(1 - 0.05 / 3)
    assert among.ci[0] < alone.ci[0]
    assert among.detectable > alone.detectable
    assert among.p == alone.p
    assert among.p_holm == pytest.approx(3 * among.p)


def test_the_sentence_says_what_was_found_and_where():
    found = one(-0.0123, 0.003, caveat="They did not spend the same: 1 against 2.")
    assert found.sentence.startswith(
        "a is better than b by 0.012 nats per token (95 % interval −0.018 to −0.006)"
    )
    assert "5 fresh seeds × 1,000 examples, of a task." in found.sentence
    assert found.sentence.endswith("They did not spend the same: 1 against 2.")


def test_undetermined_prints_what_could_have_been_found():
    found = one(0.02, 0.02)
    assert "80 % power" in found.sentence
    assert found.detectable == pytest.approx(0.02 * 2.9, rel=0.02)


def test_nothing_finished_is_undetermined_without_numbers():
    found = judge([Comparison(arm="a", estimate=None)], versus="b", delta=0.01, reach="")[0]
    assert (found.verdict, found.difference, found.p, found.ci) == ("undetermined", None, None, (None, None))


def test_pareto_keeps_equals_and_drops_the_dominated():
    points = {"a": (1.0, 2.0), "b": (1.0, 2.0), "c": (2.0, 2.0), "d": (3.0, 1.0)}
    assert pareto(points) == ["a", "b", "d"]
