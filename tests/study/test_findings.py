"""Verdicts: what the interval decides, what overrules it, and what the sentence says."""

from __future__ import annotations

import math

import pytest

from loratlas.scan.advice import track_record
from loratlas.study.execution.schedule_state import Schedule
from loratlas.study.results.came_apart import CameApart
from loratlas.study.results.estimator import Estimate
from loratlas.study.results.findings import Comparison, decide, judge, pareto
from loratlas.study.results.study_notes import scan_record, study_notes
from loratlas.study.spec.spec_file import parse_spec
from loratlas.study.spec.study_spec import StudySpec


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
    result = one(value, 0.001, seeds=4)
    assert result.verdict == "undetermined"
    assert "4 evaluation seeds" in result.reason


@pytest.mark.parametrize("value", [-0.5, 0.0, 0.5])
def test_problems_of_the_protocol_overrule_the_interval(value):
    result = one(value, 0.001, problems=("1 of 5 evaluation runs of a diverged",))
    assert result.verdict == "undetermined"
    assert "diverged" in result.sentence


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
    assert among.p_holm == among.p_adjusted == pytest.approx(3 * among.p)


def test_the_sentence_says_what_was_found_and_where():
    result = one(-0.0123, 0.003, caveat="Their budgets differ: 1 against 2.")
    assert result.sentence.startswith(
        "a is better than b by 0.012 nats per token (95 % interval −0.018 to −0.006)"
    )
    assert "5 fresh seeds × 1,000 examples, of a task." in result.sentence
    assert result.sentence.endswith("Their budgets differ: 1 against 2.")


def test_undetermined_prints_what_could_have_been_found():
    result = one(0.02, 0.02)
    assert "80 % power" in result.sentence
    assert result.detectable == pytest.approx(0.02 * 2.9, rel=0.02)


def test_nothing_finished_is_undetermined_without_numbers():
    result = judge([Comparison(arm="a", estimate=None)], versus="b", delta=0.01, reach="")[0]
    assert (result.verdict, result.difference, result.p, result.ci) == (
        "undetermined",
        None,
        None,
        (None, None),
    )


def test_pareto_keeps_equals_and_drops_the_dominated():
    points = {"a": (1.0, 2.0), "b": (1.0, 2.0), "c": (2.0, 2.0), "d": (3.0, 1.0)}
    assert pareto(points) == ["a", "b", "d"]


def test_no_p_contradicts_its_interval():
    # By Holm's correction the second would have p = 0.036 beside an interval at 1 − 0.05 / 2 that holds 0.
    clear, near = estimate(-0.1, 0.01), estimate(-0.022, 0.01)
    several = [Comparison(arm="clear", estimate=clear), Comparison(arm="near", estimate=near)]
    judged = judge(several, versus="b", delta=0.001, reach="")
    for finding in judged:
        assert (finding.p_adjusted < 0.05) == (finding.ci[0] > 0 or finding.ci[1] < 0)
    assert judged[1].p < 0.05 < judged[1].p_adjusted


def test_a_difference_is_given_in_steps_and_at_equal_compute():
    comparison = Comparison(
        arm="auto",
        estimate=estimate(-0.05, 0.01),
        steps=200,
        curves=({100: 0.2, 200: 0.0, 300: -0.1},),
        equal_compute=estimate(0.02, 0.004),
        extra_steps=160,
    )
    result = judge([comparison], versus="full", delta=0.01, reach="of a task")[0]
    assert result.steps_saved["low"] < result.steps_saved["value"] == pytest.approx(44.9)
    assert result.steps_saved["value"] < result.steps_saved["high"]
    assert "worth 45 of full's 200 steps" in result.sentence
    assert result.equal_compute["verdict"] == "worse"
    assert result.equal_compute["extra_steps"] == 160
    assert "trained 160 steps longer" in result.sentence
    assert result.to_json()["steps_saved"] == result.steps_saved


def test_a_run_that_came_apart_is_named():
    run = CameApart(arm="b", phase="evaluation", lr=1e-3, seed=7, above=0.3, times=20.0)
    comparison = Comparison(arm="a", estimate=estimate(-0.05, 0.01), came_apart=(run,), caveat="Alike.")
    result = judge([comparison], versus="b", delta=0.01, reach="of a task")[0]
    assert result.verdict == "better"
    assert "Alike. Seed 7 of b is an outlier in evaluation (+0.300 nats, 20 times" in result.sentence
    assert result.to_json()["came_apart"][0]["seed"] == 7


SCANNED = parse_spec(
    "{name: x, model: m, data: {train: a, eval: b}, arms: {full: 'all:1', scanned: scan}, match: params}"
)
ROWS = {"cut": 0, "dropped": 0, "source": "a"}


def replace_tuning(spec: StudySpec, **more: int) -> StudySpec:
    return spec.model_copy(update={"tuning": spec.tuning.model_copy(update=more)})


def notes_of(scan: dict, spec: StudySpec = SCANNED) -> list[str]:
    about = {"scan": scan, "matches": {}, "data": {"train": ROWS, "evaluation": ROWS}}
    state = Schedule(pending=(), planned=0, rates=spec.learning_rates, chosen={}, at_edge=frozenset())
    return study_notes(spec, about, state)


def test_tuning_seeds_that_the_file_did_not_ask_for_are_said_to_have_been_trained():
    few = replace_tuning(SCANNED, seeds=2)
    (said,) = [note for note in notes_of({}, few) if "tuning seeds" in note]
    assert said.startswith("3 tuning seeds were trained near each optimum, where the study's file asks for 2")
    assert not [note for note in notes_of({}, replace_tuning(SCANNED, seeds=3)) if "tuning seeds" in note]


@pytest.mark.parametrize("by", ["gradient", "probe_energy", "probe_yield"])
def test_what_is_said_of_a_scan_is_about_the_score_that_decided_it(by: str):
    """Not about the one whose column comes first."""
    signals = [{"name": name} for name in ("probe_yield", "gradient", "probe_energy")]
    said = notes_of({"by": by, "signals": signals})
    assert track_record(by) in said
    others = {"gradient", "probe_energy", "probe_yield"} - {by}
    assert not {track_record(name) for name in others} & set(said)


def test_a_scan_of_before_keeps_the_score_and_the_visits_that_it_had():
    assert scan_record({"signals": [{"name": "gradient"}], "rows": 64}) == {
        "signals": [{"name": "gradient"}],
        "rows": 64,
        "by": "gradient",
        "visits": 64,
    }
