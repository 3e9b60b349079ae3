"""Studies of classifiers and of models that write a target, from the file to the page."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.tasks.conftest import pairs, sentences, write

from loratlas.errors import DataError, SettingsError, SpecError
from loratlas.evaluation.class_metrics import f1_rows
from loratlas.evaluation.loss_files import read_columns
from loratlas.report import build
from loratlas.study.results.estimator import estimate
from loratlas.study.results.side_metrics import reported_metrics
from loratlas.study.results.study_result import load_study
from loratlas.study.run_study import run_study
from loratlas.study.spec.spec_file import parse_spec

SHORT = {
    "name": "tasks",
    "arms": {"full": "all:2", "attention": "attention"},
    "match": "params",
    "learning_rates": [9e-3],
    "tuning": {"seeds": 1, "rows": 8, "extensions": 0},
    "evaluation": {"seeds": 2, "rows": 12},
    "steps": 3,
    "batch_size": 4,
    "max_length": 32,
    "demonstration": True,
}


@pytest.fixture(scope="module")
def classified(bases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classified")
    write(folder / "train.jsonl", sentences(24))
    write(folder / "eval.jsonl", sentences(13)[1:])
    data = {"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl")}
    spec = {
        **SHORT,
        "model": str(bases("bert")),
        "data": data,
        "forgetting": {"data": data["train"], "rows": 6},
    }
    return run_study(parse_spec(spec), folder / "out", workers=1).to_json(), folder / "out", spec


def runs(data, out, arm):
    result = next(one for one in data["arms"] if one["name"] == arm)
    return result, [out / "runs" / run["digest"] for run in result["runs"]]


def test_a_classification_is_told_per_row_with_its_metrics(classified):
    data, out, _ = classified
    assert data["complete"]
    assert data["task"] == {
        "name": "classification",
        "id2label": {"0": "bad", "1": "good"},
        "unit": "nats per row",
    }
    assert data["head"] == 48 * 48 + 48 + 2 * 48 + 2
    losses = []
    for name in ("full", "attention"):
        arm, folders = runs(data, out, name)
        kept = [read_columns(folder, "predictions.parquet", ("label", "predicted")) for folder in folders]
        right = np.array([k["label"] == k["predicted"] for k in kept])
        assert [m["name"] for m in arm["metrics"]] == ["accuracy", "macro_f1"]
        assert arm["metric"] == arm["metrics"][0]
        assert arm["metrics"][0]["value"] == pytest.approx(right.mean())
        f1 = np.array([f1_rows(k["label"], k["predicted"]) for k in kept])
        assert arm["metrics"][1]["value"] == pytest.approx(f1.mean())
        assert arm["metrics"][1]["ci"] == list(estimate(f1, np.ones(12)).interval(0.95))
        examples = [read_columns(folder, "examples.parquet", ("n", "nll")) for folder in folders]
        assert all((e["n"] == 1).all() for e in examples)
        losses.append(np.stack([e["nll"] for e in examples]))
        assert arm["forgetting"]["rows"] == 6
    (finding,) = data["findings"]
    share = sum(arm["rate_error"] ** 2 for arm in data["arms"])
    wanted = estimate(losses[1] - losses[0], np.ones(12), rate_share=share)
    assert finding["difference"] == pytest.approx(wanted.value)
    assert finding["p"] == pytest.approx(wanted.p)
    assert "nats per row" in finding["sentence"]
    assert [m["by"] for m in finding["by_measure"]] == ["token_mean", "accuracy", "macro_f1"]
    assert data["ranks"]["compared"] == 2
    for arm in data["arms"]:
        _, folders = runs(data, out, arm["name"])
        records = [json.loads((folder / "record.json").read_text()) for folder in folders]
        assert all(record["packing"].startswith("padded") for record in records)
        assert all(record["trained"].startswith("in a fleet") for record in records)


def test_the_page_of_a_classification_speaks_of_rows(classified, tmp_path):
    data, out, _ = classified
    page = build(data, tmp_path).read_text()
    assert "nats per row" in page
    assert "nats per token" not in page.partition('id="figures"')[0].replace("nats per token</span>", "")
    assert "macro F1" in page
    assert "of the head" in page
    assert ">Perplexity<" not in page
    assert load_study(out).to_json() == data


def test_the_same_study_again_trains_nothing(classified):
    data, out, spec = classified
    events = []
    again = run_study(parse_spec(spec), out, workers=1, on_event=events.append)
    assert [event.kind for event in events] == ["prepared", "complete"]
    assert again.to_json() == data


def test_a_study_of_targets_has_its_answers_scored(bases, tmp_path):
    pytest.importorskip("rouge_score")
    write(tmp_path / "train.jsonl", pairs(24))
    write(tmp_path / "eval.jsonl", pairs(12))
    data = {"train": str(tmp_path / "train.jsonl"), "eval": str(tmp_path / "eval.jsonl")}
    metric = {"name": "rouge_l", "rows": 2, "max_new_tokens": 4}
    spec = {**SHORT, "model": str(bases("t5")), "data": data, "metric": metric}
    result = run_study(parse_spec(spec), tmp_path / "out", workers=1).to_json()
    assert result["complete"]
    assert result["task"] == {"name": "seq2seq", "unit": "nats per token"}
    assert result["head"] == 0
    for arm in result["arms"]:
        assert [(m["name"], m["unit"], m["rows"]) for m in arm["metrics"]] == [
            ("rouge_l", "rouge", 2),
            ("exact_match", "share", 2),
        ]
        _, folders = runs(result, tmp_path / "out", arm["name"])
        columns = read_columns(folders[0], "examples.parquet", ("n", "nll"))
        assert columns["n"].tolist() == [3] * 12  # two words and the end token
    assert [m["name"] for m in result["ranks"]["measures"]][-2:] == ["rouge_l", "exact_match"]
    assert "ROUGE-L" in build(result, tmp_path).read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metric": {"name": "exact_match", "rows": 4}}, "a classification task, which has no such metric"),
        ({"packing": "on"}, "a classifier reads one place of every row"),
        ({"task": "seq2seq"}, "no class for it that does this"),
    ],
)
def test_what_a_classification_does_not_have_is_refused(classified, tmp_path, changes, words):
    spec = {key: value for key, value in {**classified[2], **changes}.items() if key != "forgetting"}
    with pytest.raises(Exception, match=words) as caught:
        run_study(parse_spec(spec), tmp_path / "out", workers=1)
    assert isinstance(caught.value, (SpecError, DataError, SettingsError)) or "model" in caught.value.code
    assert not (tmp_path / "out").exists()


def test_the_metric_that_is_asked_for_stands_first(classified):
    def names(metric, task):
        spec = parse_spec({**classified[2], **({"metric": metric} if metric else {})})
        return [measure.name for measure in reported_metrics(spec, {"name": task})]

    assert names(None, "classification") == ["accuracy", "macro_f1"]
    assert names("macro_f1", "classification") == ["macro_f1", "accuracy"]
    assert names({"name": "exact_match", "rows": 4}, "causal") == ["exact_match"]
    assert names(None, "seq2seq") == []


def test_forgetting_needs_rows_of_the_task(classified, tmp_path):
    other = write(tmp_path / "other.jsonl", pairs(12))
    spec = {**classified[2], "forgetting": {"data": str(other), "rows": 6}}
    with pytest.raises(DataError, match="of which a classifier has no loss"):
        run_study(parse_spec(spec), tmp_path / "out", workers=1)
