"""What the advice says of itself is what the bench measured on cases that chose nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.dynamic.judging.placement import summary

from loratlas.scan import advice
from loratlas.scan.advice import DECIDES, auto_record, judged, track_record

RESULTS = Path(__file__).parents[2] / "benchmarks/results"


def test_the_advice_is_the_newest_result():
    kept, moves = (
        json.loads((RESULTS / name).read_text(encoding="utf-8"))
        for name in ("placement.json", "earlier/placement-2.json")
    )
    assert json.loads(json.dumps(summary(kept, moves))) == judged()
    assert all(case["unseen"] for case in kept["cases"])


def test_a_score_that_was_never_measured_says_so():
    assert "was not measured" in track_record("fisher")
    assert f"plans by {DECIDES} lost" in track_record(DECIDES)
    assert "The scan's own steps are not counted" in track_record("gradient")


def test_what_auto_is_worth_names_all_verdicts_and_both_ends(monkeypatch: pytest.MonkeyPatch):
    def case(name: str, value: float, verdict: str) -> dict[str, object]:
        ends = {"value": value, "low": value - 0.01, "high": value + 0.01}
        return {"name": name, "auto_minus_all": ends, "verdict": verdict}

    cases = [case("a", -0.05, "better"), case("b", 0.2, "worse"), case("c", 0.0, "undetermined")]
    none = {"better": None, "worse": None, "cases": None, "finer": None}
    monkeypatch.setattr(advice, "judged", lambda: {"inside": {"cases": cases, "moves": none}})
    said = auto_record()
    assert "better in 1, worse in 1, undetermined in 1" in said
    assert "-0.050 (-0.060 to -0.040; a)" in said
    assert "+0.200 (+0.190 to +0.210; b)" in said
    assert "Moves alone" not in said
    moves = {"better": 4, "worse": 3, "cases": 9, "finer": None}
    monkeypatch.setattr(advice, "judged", lambda: {"inside": {"cases": cases, "moves": moves}})
    assert "better in 4, worse in 3 of 9. A study" in auto_record()
    finer = {**moves, "finer": {"better": 1, "worse": 2, "cases": 3}}
    monkeypatch.setattr(advice, "judged", lambda: {"inside": {"cases": cases, "moves": finer}})
    assert "worse in 3 of 9, with rates tuned finer in 1 and 2." in auto_record()
    monkeypatch.setattr(advice, "judged", lambda: {"inside": {"cases": [], "moves": none}})
    assert "not measured yet" in auto_record()
