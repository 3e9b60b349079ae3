"""`train` and `eval` on classifiers and encoder-decoders, as they are written, and what they refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest
from peft import PeftModel
from tests.tasks.conftest import pairs, sentences, write
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer

from loratlas.evaluation.loss_files import read_columns

ASKED = ("--samples", 3, "--rouge")
FEW = ("--steps", 3, "--batch-size", 4, "--dtype", "float32", "--lr", "0.01")


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_a_classifier_from_rows_to_plain_peft(bases, cli, tmp_path, model_type):
    base = bases(model_type)
    train, test = (
        write(tmp_path / "train.jsonl", sentences(20)),
        write(tmp_path / "test.jsonl", sentences(14)),
    )
    out = tmp_path / "run"
    code, said, _ = cli(
        "train", base, train, "--placement", "all:2", "--eval", test, *FEW, "--out", out, "--json"
    )
    assert code == 0
    facts = json.loads(said)
    assert facts["task"] == {"name": "classification", "id2label": {"0": "bad", "1": "good"}}
    assert facts["head"] == {"bert": 48 * 48 + 48 + 2 * 48 + 2, "gpt2": 2 * 48}[model_type]
    sites = json.loads((out / "adapter/loratlas.json").read_text())["plan"]["sites"]
    assert facts["trainable"] == sum(site["rank"] * sum(site["shape"]) for site in sites)

    code, said, _ = cli(
        "eval", base, test, "--adapter", out, "--dtype", "float32", "--out", tmp_path / "eval", "--json"
    )
    assert code == 0
    judged = json.loads(said)
    assert {name: judged[name] for name in facts["eval"]} == facts["eval"]
    assert judged["task"] == facts["task"]
    kept = read_columns(tmp_path / "eval", "predictions.parquet", ("example", "label", "predicted"))
    assert judged["accuracy"] == np.mean(kept["label"] == kept["predicted"])

    plain = AutoModelForSequenceClassification.from_pretrained(base, id2label={0: "bad", 1: "good"})
    plain.config.pad_token_id = 2 if model_type == "gpt2" else 0
    model = PeftModel.from_pretrained(plain, out / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    given = tokenizer([row["text"] for row in sentences(14)], padding=True, return_tensors="pt")
    result = model(**given).logits
    assert result.argmax(-1).tolist() == kept["predicted"].tolist()
    loss = np.mean(read_columns(tmp_path / "eval", "examples.parquet", ("nll",))["nll"])
    log_p = result.log_softmax(-1).detach().numpy()[np.arange(14), kept["label"]]
    assert loss == pytest.approx(-log_p.mean(), rel=1e-5)


def test_targets_are_written_and_scored(bases, cli, tmp_path):
    pytest.importorskip("rouge_score")
    base, rows = bases("t5"), write(tmp_path / "rows.jsonl", pairs(12))
    out = tmp_path / "run"
    code, said, _ = cli(
        "train", base, rows, "--placement", "xattn:2", "--eval", rows, *FEW, *ASKED, "--out", out, "--json"
    )
    assert code == 0
    facts = json.loads(said)
    assert (facts["task"], facts["head"]) == ({"name": "seq2seq"}, 0)
    assert facts["samples"]["rows"] == 3
    assert 0 <= facts["samples"]["rouge_l"] <= 1
    code, said, _ = cli("eval", base, rows, "--adapter", out, "--dtype", "float32", *ASKED, "--json")
    judged = json.loads(said)
    assert judged["token_mean_nll"] == pytest.approx(facts["eval"]["token_mean_nll"], rel=1e-6)
    assert judged["samples"] == facts["samples"]
    assert judged["residual"] < 1e-6
    plain = AutoModelForSeq2SeqLM.from_pretrained(base)
    model, tokenizer = (
        PeftModel.from_pretrained(plain, out / "adapter").eval(),
        AutoTokenizer.from_pretrained(base),
    )
    ids = tokenizer(pairs(1)[0]["prompt"], return_tensors="pt")["input_ids"]
    written = model.generate(input_ids=ids, do_sample=False, max_new_tokens=128)
    assert (
        facts["samples"]["samples"][0]["answer"]
        == tokenizer.decode(written[0], skip_special_tokens=True).strip()
    )


def test_people_read_accuracy_and_the_head(bases, cli, tmp_path):
    rows = write(tmp_path / "rows.jsonl", sentences(12))
    code, said, _ = cli(
        "train", bases("bert"), rows, "--placement", "all:2", "--eval", rows, *FEW, "--out", tmp_path / "run"
    )
    assert code == 0
    assert "evaluation accuracy" in said
    assert "and the head" in said
    assert "AutoModelForSequenceClassification" in said
    assert "id2label={0: 'bad', 1: 'good'}" in said
    code, said, _ = cli("eval", bases("bert"), rows, "--adapter", tmp_path / "run")
    assert code == 0
    assert "nats per row" in " ".join(said.split())
    assert max(map(len, said.splitlines())) <= 80


REFUSED = {
    "two tasks fit": ("t5", sentences(4), ()),
    "nothing that an encoder": ("bert", pairs(4), ()),
    "the same label, 'bad', on all 1 rows": ("bert", sentences(1), ()),
    "missing field 'label' on row 2": ("bert", [*sentences(1), {"text": "w5"}], ()),
    "label 0.5 is neither an integer nor a text": ("bert", [{"text": "w5", "label": 0.5}], ()),
    "no class for it that does this": ("bert", sentences(4), ("--task", "seq2seq")),
    "only the label is predicted": ("bert", sentences(4), ("--loss", "all")),
    "a classifier writes no answers": ("bert", sentences(4), ("--samples", 2, "--eval", "rows.jsonl")),
    "no answers to score": ("t5", pairs(4), ("--rouge", "--eval", "rows.jsonl")),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_written(bases, cli, tmp_path, monkeypatch, words):
    model_type, rows, more = REFUSED[words]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", rows)
    code, _, said = cli(
        "train", bases(model_type), "rows.jsonl", "--placement", "all:2", *FEW, *more, "--out", "run"
    )
    assert code == 2
    assert words in said
    assert not (tmp_path / "run").exists()


def test_eval_refuses_what_it_cannot_judge(bases, cli, tmp_path):
    base, rows = bases("bert"), write(tmp_path / "rows.jsonl", sentences(8))
    code, _, said = cli("eval", base, rows)
    assert code == 2
    assert "no trained head for these labels" in said
    cli("train", base, rows, "--placement", "all:2", *FEW, "--out", tmp_path / "run")
    strange = write(tmp_path / "strange.jsonl", [{"text": "w5", "label": "so-so"}])
    code, _, said = cli("eval", base, strange, "--adapter", tmp_path / "run")
    assert code == 2
    assert "the label 'so-so', which the model does not know" in said
    code, _, said = cli("eval", base, rows, "--adapter", tmp_path / "run", "--smoothing", "0.1")
    assert code == 2
    assert "--smoothing in a classification task" in said


def test_signals_are_measured_on_causal_models_alone(bases, cli, tmp_path):
    code, _, said = cli("scan", bases("bert"), write(tmp_path / "rows.jsonl", sentences(8)))
    assert code == 2
    assert "no class for it that does this" in said


def test_a_classifier_is_exported_and_merged(bases, cli, tmp_path):
    base, rows = bases("bert"), write(tmp_path / "rows.jsonl", sentences(8))
    cli("train", base, rows, "--placement", "all:2", *FEW, "--out", tmp_path / "run")
    for target in ("peft", "merged"):
        code, said, _ = cli("export", tmp_path / "run", "--for", target, "--out", tmp_path / target, "--json")
        assert code == 0
        assert json.loads(said)["check"] < 1e-5
    code, said, _ = cli("eval", tmp_path / "merged", rows, "--dtype", "float32", "--json")
    assert code == 0
    assert json.loads(said)["task"]["id2label"] == {"0": "bad", "1": "good"}
