"""What is printed of trainable parameters where adapters move: what runs ended with, never what they were to."""

from __future__ import annotations

import json
import math
import re

import pytest
from tests.study.test_moving_arms import SPEC

from loratlas.study.execution.ledger import Key
from loratlas.study.results.study_result import build, load_study
from loratlas.study.results.trainable_counts import budget_match, ended_with, spread_notes
from loratlas.study.run_study import run_study
from loratlas.study.spec.spec_file import parse_spec

ABOUT = {"trainable": {"full": 29_696, "moved": 29_696}, "moving": {"moved": 29_696}}
RECORDS = {11: {"trainable": 37_504}, 12: {"trainable": 38_144}}
MATCH = {"quantity": "params", "wanted": 29_696, "got": 29_696, "relative": 0.0, "solved": True}


def test_counts_are_those_of_the_runs_where_adapters_move():
    assert ended_with("moved", ABOUT, RECORDS) == [37_504, 38_144]
    assert ended_with("full", ABOUT, RECORDS) == [29_696]  # obeyed as planned
    assert ended_with("moved", ABOUT, {}) == [29_696]  # nothing finished: what it is to end with


def test_the_match_is_of_what_runs_ended_with():
    match = budget_match(MATCH, arm=[37_504, 38_144], reference=[29_696])
    assert (match["wanted"], match["got"]) == (29_696, 38_144)
    assert match["relative"] == pytest.approx(38_144 / 29_696 - 1)
    assert match["solved"]
    assert MATCH["relative"] == 0.0  # the ledger's own stays as it is
    by_time = MATCH | {"quantity": "time", "relative": 0.2}
    assert budget_match(by_time, arm=[38_144], reference=[29_696]) == by_time
    assert budget_match(None, arm=[1], reference=[1]) is None


def test_runs_that_ended_apart_are_said_to_have():
    assert spread_notes({"full": [5], "even": [7, 7]}) == []
    (note,) = spread_notes({"moved": [38_144, 37_504]})
    assert "37,504 to 38,144" in note


@pytest.fixture(scope="module")
def reread(tmp_path_factory):
    """A study whose runs of one arm are put down as having ended with 31 % more than they were to."""
    out = tmp_path_factory.mktemp("study") / "s"
    run_study(parse_spec(SPEC), out, workers=1)
    before = load_study(out).to_json()
    from loratlas.study.execution.ledger import Ledger

    ledger = Ledger.open(out)
    finished = dict(ledger.finished())
    for number, key in enumerate(sorted(finished, key=lambda key: key.seed)):
        if isinstance(key, Key) and key.arm == "early" and key.phase == "evaluation":
            finished[key] = {**finished[key], "trainable": 40_000 + 100 * number}
    counts = [record["trainable"] for key, record in finished.items() if key.arm == "early"]
    about = ledger.about
    after = build(parse_spec(about["spec"], where="a test", kept=True), about, finished, out / "runs")
    return before, after.to_json(), max(counts)


def test_a_reader_sees_no_count_that_no_run_had(reread):
    before, after, most = reread
    full, early, _ = after["arms"]
    assert early["trainable"] == most >= 40_000
    assert {run["trainable"] for run in early["moving"]} >= {most}
    assert early["match"]["got"] == most
    assert early["match"]["relative"] == pytest.approx(most / full["trainable"] - 1)
    assert full["trainable"] == before["arms"][0]["trainable"]
    (finding,) = [finding for finding in after["findings"] if finding["arm"] == "early"]
    assert f"{most:,} trainable parameters against {full['trainable']:,}" in finding["sentence"]
    off = re.search(r"met to within ([\d.]+) %", finding["sentence"])
    assert off is not None
    assert math.isclose(float(off[1]), 100 * (most / full["trainable"] - 1), abs_tol=0.06)
    assert f"to {most:,} trainable parameters" in " ".join(after["notes"])
    assert json.dumps(after)  # plain data, as findings.json needs it
