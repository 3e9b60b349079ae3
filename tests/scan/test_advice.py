"""What the advice says of itself is what the oracle bench measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loratlas.scan.advice import DECIDES, MEASURED, REGRET, track_record

KEPT = Path(__file__).parents[2] / "benchmarks/results/oracle.json"


def test_every_regret_is_the_one_that_was_measured():
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    upper = {row["rule"]: row["upper"] for row in kept["rules"]}
    rules = {rule.removeprefix("rule "): value for rule, value in upper.items()}
    assert {by: pytest.approx(rules[by], abs=5e-4) for by in REGRET} == REGRET
    assert pytest.approx(upper["all"], abs=5e-4) == MEASURED.everywhere
    assert pytest.approx(kept["unseen"]["upper"], abs=5e-4) == MEASURED.unseen
    told = [json.loads(path.read_text(encoding="utf-8")) for path in (KEPT.parent / "oracle").glob("*.json")]
    cases = {f"{base} {task} {MEASURED.budget}" for base, tasks in MEASURED.tasks.items() for task in tasks}
    assert cases == {case["case"] for case in told if not case["tie"]}


def test_what_decides_has_the_lowest_regret():
    assert min(REGRET, key=REGRET.__getitem__) == DECIDES


def test_a_score_that_was_never_measured_says_so():
    assert track_record("fisher").startswith("What plans by fisher lose was not measured")
    assert "not chosen by" in track_record(DECIDES)
    assert "not chosen by" not in track_record("gradient")
    assert "lost 4 % of" in track_record("probe_yield")
