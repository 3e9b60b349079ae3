"""Arms of a study whose adapters move inside their runs."""

from __future__ import annotations

import json

import pytest

from loratlas.errors import BudgetError, SpecError
from loratlas.study.execution.ledger import Ledger
from loratlas.study.inputs import prepare as preparing
from loratlas.study.inputs.match_budgets import arms_of_scan
from loratlas.study.results.study_result import load_study
from loratlas.study.run_study import run_study
from loratlas.study.spec.spec_file import parse_spec

SPEC = {
    "name": "moving",
    "model": "demo:llama-mini",
    "data": {"train": "demo:facts-300"},
    "arms": {
        "full": "all:1",
        "early": {"placement": "auto", "signal": "random", "head": 4},
        "still": {"placement": "auto", "signal": "none", "head": 4, "init": True},
    },
    "reference": "full",
    "match": "params",
    "learning_rates": [3e-3],
    "tuning": {"seeds": 1, "rows": 20, "extensions": 0},
    "evaluation": {"seeds": 2, "rows": 16},
    "steps": 6,
    "batch_size": 4,
    "max_length": 64,
    "demonstration": True,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished study, and its result."""
    out = tmp_path_factory.mktemp("study") / "s"
    return out, run_study(parse_spec(SPEC), out, workers=1).to_json()


def test_adapters_of_an_arm_move_in_every_run_of_it(finished):
    out, result = finished
    full, early, still = result["arms"]
    assert "moving" not in full
    assert "scan" not in result
    assert len({run["seed"] for run in early["moving"]}) == SPEC["evaluation"]["seeds"]
    for run in early["moving"]:
        assert [decision["step"] for decision in run["decisions"]] == [4]
        assert run["moves"]
        assert run["steps"] == SPEC["steps"]  # no step is added
        assert run["decisions"][0]["parameters"] <= full["trainable"]
    assert [run["moves"] for run in still["moving"]] == [[], []]
    assert still["nll"] == pytest.approx(full["nll"], abs=1e-6)
    assert early["match"]["solved"]
    records = [json.loads(path.read_text()) for path in out.glob("runs/*/record.json")]
    ways = {record["key"]["arm"]: record.get("trained") for record in records}
    assert ways["early"] == "alone: its adapters move while it trains"
    said = " ".join(result["notes"])
    assert "early places its adapters inside its runs" in said
    assert "after 4 of 6 steps by random" in said


def test_the_same_command_finds_nothing_left_to_do(finished):
    out, result = finished
    assert run_study(parse_spec(SPEC), out, workers=1).to_json()["arms"] == result["arms"]
    assert load_study(out).to_json()["arms"] == result["arms"]


def test_what_began_by_a_scan_goes_on_by_it():
    spec = parse_spec(SPEC)
    assert arms_of_scan(spec, None) == []
    assert arms_of_scan(spec, {"scan": {}}) == ["early", "still"]
    assert arms_of_scan(spec, {"scan": {}, "moving": {"early": 1}}) == []
    assert arms_of_scan(parse_spec(SPEC | {"arms": {"full": "all:1", "by": "scan"}}), None) == ["by"]


def test_what_is_not_asked_for_is_not_in_the_digest():
    plain = SPEC | {"arms": {"full": "all:1", "auto": "auto"}, "steps": 60}
    arm = parse_spec(plain).to_json()["arms"]["auto"]
    assert not {"signal", "head", "decide"} & set(arm)


REFUSED = [
    ({"placement": "all:2", "signal": "energy"}, "whose adapters stay where they are"),
    ({"placement": "auto", "signal": "magic"}, "no such policy"),
    ({"placement": "auto", "head": 6}, "a run of 6"),
    ({"placement": "auto", "head": "2"}, "too few"),
    ({"placement": "auto", "decide": "often"}, "not understood"),
    ({"placement": "auto", "head": 4, "init": "olora"}, "whose ranks cannot change"),
]


@pytest.mark.parametrize(("arm", "said"), REFUSED, ids=[str(arm) for arm, _ in REFUSED])
def test_arms_that_cannot_move_are_refused_when_the_file_is_read(arm, said):
    with pytest.raises(SpecError, match=said) as caught:
        parse_spec(SPEC | {"arms": {"full": "all:1", "moved": arm}})
    assert "arms.moved" in caught.value.given


def test_a_budget_that_no_run_can_begin_with():
    arms = {"full": "all:1", "moved": {"placement": "auto", "head": 4, "budget": "params=5000"}}
    with pytest.raises(BudgetError, match=r"rank 1 at each site.*more than 1\.5 times") as caught:
        preparing.prepare(parse_spec(SPEC | {"arms": arms}))
    enough = caught.value.instead.split("params=")[1].split(",")[0]
    arms["moved"]["budget"] = f"params={enough}"
    prepared = preparing.prepare(parse_spec(SPEC | {"arms": arms}))
    assert prepared.moving == {"moved": int(enough)}
    assert prepared.plans["moved"].text == "all:1"


def test_the_ledger_knows_where_runs_end(finished):
    out, _ = finished
    assert Ledger.open(out).about["moving"].keys() == {"early", "still"}
