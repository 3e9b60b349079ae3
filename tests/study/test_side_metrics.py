"""What is measured beside the loss: asked for in the file, kept in the ledger, and nothing where it was not asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from loratlas.demo import recipe_path
from loratlas.errors import DataError, OutputError, SpecError
from loratlas.study.execution.ledger import Key, Ledger
from loratlas.study.results.estimator import estimate
from loratlas.study.results.side_metrics import read_forgetting, read_metrics
from loratlas.study.results.study_result import load_study
from loratlas.study.run_study import run_study
from loratlas.study.spec.spec_file import load_spec, parse_spec

RECIPES = Path(__file__).parents[2] / "recipes"

DIGESTS = {
    "alpaca-all1": "57f30ce400083e81",
    "alpaca-all8": "42aff00a05b10ae4",
    "gsm8k-all8": "93cc1920f048bf6c",
    "retrieval": "97c5a2dff825a2a0",
}
"""What studies of the second edition are known by: new keys of the file must not change them."""

SPEC = {
    "name": "beside",
    "model": "demo:llama-mini",
    "data": {"train": "demo:facts-300"},
    "arms": {"full": "all@top/4:1", "wide": "all@top/2:8"},
    "reference": "full",
    "learning_rates": [9e-3],
    "tuning": {"seeds": 1, "rows": 20, "extensions": 0},
    "evaluation": {"seeds": 2, "rows": 24},
    "steps": 4,
    "batch_size": 4,
    "max_length": 64,
    "demonstration": True,
    "metric": {"name": "exact_match", "rows": 6, "max_new_tokens": 4},
    "forgetting": {"data": "demo:retrieval", "rows": 8},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("beside") / "out"
    return run_study(parse_spec(SPEC), out, workers=1), out


@pytest.mark.parametrize("name", DIGESTS)
def test_studies_that_do_not_ask_are_the_studies_they_were(name):
    spec = load_spec(recipe_path(name) or RECIPES / f"{name}.yaml")
    assert spec.digest == DIGESTS[name]
    assert not {"metric", "forgetting"} & set(spec.to_json())


def test_what_is_asked_for_is_part_of_the_digest():
    bare = {key: value for key, value in SPEC.items() if key not in ("metric", "forgetting")}
    asked = ({}, {"metric": "exact_match"}, {"metric": SPEC["metric"]}, {"forgetting": "demo:retrieval"})
    wide = {**bare, "evaluation": {"seeds": 2, "rows": 100}}
    digests = {parse_spec({**wide, **more}).digest for more in asked}
    assert len(digests) == 4
    again = parse_spec(parse_spec(SPEC).to_json())
    assert again.digest == parse_spec(SPEC).digest
    assert parse_spec({**SPEC, "forgetting": "demo:retrieval"}).forgetting.rows == 200


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"metric": "bleu"}, SpecError, "exact_match"),
        ({"metric": {"name": "exact_match", "row": 3}}, SpecError, "metric.rows"),
        ({"metric": {"name": "exact_match", "rows": 25}}, SpecError, "24 or less"),
        ({"forgetting": {"rows": 5}}, SpecError, "forgetting.data"),
        ({"forgetting": {"data": "x", "losss": "all"}}, SpecError, "forgetting.loss"),
        ({"forgetting": "/no/such/rows.jsonl"}, DataError, "rows.jsonl"),
    ],
)
def test_a_wrong_request_is_refused_in_words(tmp_path, change, error, word):
    with pytest.raises(error) as caught:
        run_study(parse_spec({**SPEC, **change}), tmp_path / "out")
    assert word in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_raw_text_has_nothing_to_answer(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"line {i} of a text"}) + "\n" for i in range(80)))
    spec = {**SPEC, "data": {"train": str(rows), "eval": str(rows)}}
    with pytest.raises(SpecError, match="raw text without prompts"):
        run_study(parse_spec(spec), tmp_path / "out")


def test_forgetting_is_before_and_after_on_the_same_rows(whole):
    result, out = whole
    data = result.to_json()
    finished = Ledger.open(out, create=False).finished()
    base = finished[Key(phase="base")]
    n, before = read_forgetting(out / "runs" / base["digest"])
    assert base["forgetting"]["nll"] == pytest.approx(before.sum() / n.sum())
    for arm in data["arms"]:
        after = np.stack([read_forgetting(out / "runs" / run["digest"])[1] for run in arm["runs"]])
        outcome = arm["forgetting"]
        assert outcome["before"] == pytest.approx(before.sum() / n.sum())
        assert outcome["after"] == pytest.approx(after.mean(axis=0).sum() / n.sum())
        change = estimate(after - before, n)
        assert (outcome["change"], outcome["ci"]) == (change.value, list(change.interval(0.95)))
        assert outcome["change"] == pytest.approx(outcome["after"] - outcome["before"])
        assert outcome["rows"] == len(n) == 8
    assert data["base_beside"]["forgetting"] == base["forgetting"]
    assert data["data"]["forgetting"]["rows"] == 8


def test_the_metric_is_the_mean_over_seeds_and_rows(whole):
    result, out = whole
    for arm in result.arms:
        scores = [read_metrics(out / "runs" / run["digest"]) for run in arm["runs"]]
        assert all((rows == np.arange(6)).all() for rows, _ in scores)
        assert arm["metric"]["value"] == pytest.approx(np.mean([score["exact_match"] for _, score in scores]))
        assert arm["metrics"] == [arm["metric"]]
        assert (arm["metric"]["name"], arm["metric"]["rows"]) == ("exact_match", 6)


def test_only_judged_runs_are_measured(whole):
    for key, record in Ledger.open(whole[1], create=False).finished().items():
        assert ("metric" in record) == ("forgetting" in record) == (key.phase != "tuning")


def test_every_pair_is_held_against_every_measure(whole):
    outcome = whole[0].to_json()["ranks"]
    assert [m["name"] for m in outcome["measures"]] == [
        "token_mean",
        "example_mean",
        "batch_mean_8",
        "mean_example_perplexity",
        "median",
        "exact_match",
    ]
    assert outcome["compared"] == 5
    for finding in whole[0].to_json()["findings"]:
        assert finding["by_measure"][0]["difference"] == pytest.approx(finding["difference"])
        assert finding["flips"] == [m["by"] for m in finding["by_measure"] if not m["agrees"]]
        assert len(finding["flips"]) == len(finding["flip_sentences"])


def test_again_does_nothing_and_says_the_same(whole):
    result, out = whole
    events = []
    again = run_study(parse_spec(SPEC), out, workers=1, on_event=events.append)
    assert [event.kind for event in events] == ["prepared", "complete"]
    assert again.to_json() == result.to_json() == load_study(out).to_json()


def test_asking_for_more_is_another_study(whole):
    with pytest.raises(OutputError, match="differs in metric"):
        run_study(parse_spec({**SPEC, "metric": {**SPEC["metric"], "rows": 5}}), whole[1])
    without = {key: value for key, value in SPEC.items() if key != "forgetting"}
    with pytest.raises(OutputError, match="differs in forgetting"):
        run_study(parse_spec(without), whole[1])
