"""Bad input through the real command line: given, found, instead; exit 2; no traceback; nothing half-written."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

MODEL = "demo:llama-mini"
DATA = "demo:facts-300"


def lines(*rows: Any) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


GOOD = {"prompt": "Where does Ara live?", "completion": "In Brel."}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the files that the cases name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.jsonl").write_text(lines(GOOD, GOOD))
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text(lines(GOOD, '{"prompt": "x", ', GOOD))
    (tmp_path / "missing.jsonl").write_text(lines(GOOD, {"prompt": "only a question"}))
    (tmp_path / "silent.jsonl").write_text(lines({"prompt": "a", "completion": ""}))
    (tmp_path / "label.jsonl").write_text(lines({"text": "a", "label": 0}, {"text": "b", "label": -3}))
    (tmp_path / "long.jsonl").write_text(lines({"prompt": "a", "completion": "word " * 300}))
    (tmp_path / "endless.jsonl").write_text(lines({"prompt": "a", "completion": "word " * 1200}))
    (tmp_path / "strange.jsonl").write_text(lines({"question": "a", "answer": "b"}))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(lines(GOOD).encode())[:-9])
    (tmp_path / "no-config").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "no-such-model"}')
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.json").write_text('{"model_type": "gpt2", ')
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "file").write_text("not a folder")
    return tmp_path


def train(*words: str, model: str = MODEL, data: str = "good.jsonl", out: str = "run") -> list[str]:
    return ["train", model, data, "--out", out, "--steps", "1", *words]


def at(placement: str, *words: str) -> list[str]:
    return train("--placement", placement, *words)


# What is typed, what the message must say (all of it, in any of its three parts).
CASES: dict[str, tuple[list[str], list[str]]] = {
    "an engine that is not known": (
        ["export", "adapter", "--for", "vlm", "--out", "run"],
        ["'vlm' is not one of", "--for vllm"],
    ),
    "an engine to check by that is not known": (["check", "adapter", "--for", "ollma"], ["ollama"]),
    "beyond the positions": (
        train("--placement", "all", "--max-length", "2048", data="endless.jsonl"),
        ["1,024 positions", "at most 1024"],
    ),
    "unknown model": (["map", "no-such-owner/no-such-model"], ["no-such-owner/no-such-model", "Hub"]),
    "no network": (["plan", "gpt2-medium", "--placement", "all"], ["gpt2-medium", "Hub"]),
    "no such path": (["map", "./nowhere"], ["./nowhere", "no such file or directory"]),
    "directory without config": (["map", "no-config"], ["without a config.json"]),
    "unknown architecture": (["map", "odd"], ["no-such-model"]),
    "config is no JSON": (["map", "torn"], ["torn"]),
    "unknown embedded base": (["map", "demo:nothing"], ["demo:nothing", "demo:llama-mini"]),
    "placement matches nothing": (at("router"), ["router", "attn.q"]),
    "placement with a misspelt part": (at("attenton"), ["attenton", "attention"]),
    "placement does not parse": (at("q,:16"), ["q,:16", "^"]),
    "placement is empty": (at(""), ["placement"]),
    "layers that are not there": (at("q@50..60"), ["8"]),
    "contradictory ranks": (at("q:4 + attention:8"), ["4", "8", "!"]),
    "rank 0": (at("q:0"), ["0"]),
    "rank too large": (at("q:300"), ["300", "256"]),
    "budget too small": (["plan", MODEL, "--placement", "q:auto", "--budget", "params=3"], ["params=3"]),
    "budget does not parse": (["plan", MODEL, "--placement", "q", "--budget", "params=lots"], ["lots"]),
    "budget like nothing": (["plan", MODEL, "--placement", "q", "--budget", "like=nothing"], ["nothing"]),
    "alpha not a number": (["plan", MODEL, "--placement", "q", "--alpha", "nan"], ["nan"]),
    "empty file": (train("--placement", "q", data="empty.jsonl"), ["empty.jsonl"]),
    "no such data": (train("--placement", "q", data="nowhere.jsonl"), ["nowhere.jsonl"]),
    "unknown embedded task": (train("--placement", "q", data="demo:facts-301"), ["demo:facts-300"]),
    "broken JSON on a line": (train("--placement", "q", data="broken.jsonl"), ["broken.jsonl", "line 2"]),
    "missing field on a row": (train("--placement", "q", data="missing.jsonl"), ["row 2", "completion"]),
    "fields of no form": (train("--placement", "q", data="strange.jsonl"), ["question", "--map"]),
    "truncated gzip": (train("--placement", "q", data="cut.jsonl.gz"), ["cut.jsonl.gz"]),
    "all rows too long": (train("--placement", "q", "--max-length", "20", data="long.jsonl"), ["20"]),
    "zero answer tokens": (train("--placement", "q", data="silent.jsonl"), ["answer"]),
    "label out of range": (train("--placement", "q", data="label.jsonl"), ["-3", "row 2"]),
    "mapping without a column": (at("q", "--map", "prompt"), ["FIELD=COLUMN"]),
    "mapping to no column": (at("q", "--map", "prompt=quesion"), ["quesion"]),
    "unknown split": (train("--placement", "q", "--split", "dev", data=DATA), ["dev"]),
    "rate NaN": (at("q", "--lr", "nan"), ["nan"]),
    "rate 0": (at("q", "--lr", "0"), ["0"]),
    "rate below 0": (at("q", "--lr", "-1"), ["-1"]),
    "rate in words": (at("q", "--lr", "fast"), ["--lr fast", "--lr auto"]),
    "rates that fall": (at("q", "--lr", "0.02,0.01"), ["do not rise", "--lr 0.01,0.02"]),
    "the same rate twice": (at("q", "--lr", "0.01,0.01"), ["do not rise", "--lr 0.01"]),
    "too few steps to try rates": (at("q", "--lr", "0.01,0.02"), ["with 1 steps", "50 steps"]),
    "site rates of a run that is over before": (at("q", "--lr", "0.01", "--site-rates", "curvature"), ["40"]),
    "no steps": (["train", MODEL, DATA, "--out", "run", "--placement", "q", "--steps", "0"], ["steps"]),
    "steps and epochs": (at("q", "--epochs", "1"), ["epochs"]),
    "dropout 1": (at("q", "--dropout", "1"), ["dropout"]),
    "micro-batch beyond the batch": (at("q", "--micro-batch", "99"), ["99"]),
    "unknown reporter": (at("q", "--report-to", "pigeon"), ["pigeon", "tensorboard"]),
    "unknown initialisation": (at("q", "--init", "magic"), ["magic", "gaussian"]),
    "neither placement nor adapter": (train(), ["--placement", "--from"]),
    "adapter that is none": (train("--from", "taken"), ["taken", "adapter_config.json"]),
    "init of an adapter": (train("--from", "adapter", "--init", "pissa"), ["--init", "--from"]),
    "early stop without rows": (at("q", "--early-stop", "2"), ["--eval"]),
    "output is taken": (train("--placement", "q", out="taken"), ["taken", "thesis.txt"]),
    "output is a file": (train("--placement", "q", out="file"), ["file"]),
    "eval with no adapter": (["eval", MODEL, DATA, "--adapter", "nowhere"], ["nowhere"]),
    "export of nothing": (["export", "nowhere", "--for", "peft", "--out", "x"], ["nowhere"]),
    "report of nothing": (["report", "nowhere"], ["nowhere"]),
    "report of another folder": (["report", "taken"], ["taken"]),
    "study file that is not there": (["study", "nowhere.yaml"], ["nowhere.yaml"]),
    "unknown option": (["map", MODEL, "--colour"], ["--colour", "--help"]),
    "unknown command": (["mpa"], ["mpa"]),
    "unknown choice": (["train", MODEL, DATA, "--out", "x", "--loss", "some"], ["some", "answer"]),
    "number that is none": (["train", MODEL, DATA, "--out", "x", "--steps", "many"], ["many"]),
    "missing argument": (["eval", MODEL], ["DATA"]),
}

SPEC = """
name: s
model: demo:llama-mini
data: {train: "demo:facts-300"}
arms: {full: "all:1", attention: "attention:1"}
"""

SPECS: dict[str, tuple[str, list[str]]] = {
    "unknown key": (SPEC + "learning_rate: [1e-3]\n", ["learning_rate ", "learning_rates"]),
    "unknown key inside": (SPEC + "tuning: {seed: 2}\n", ["tuning.seed", "tuning.seeds"]),
    "broken YAML": (SPEC + "tuning: {\n", ["line"]),
    "an arm that matches nothing": (SPEC.replace('"attention:1"', "router"), ["router", "attention"]),
    "an arm that does not parse": (SPEC.replace('"attention:1"', '"q@@"'), ["q@@"]),
    "an unknown reference": (SPEC + "reference: fulll\n", ["fulll", "full"]),
    "a rate of 0": (SPEC + "learning_rates: [0]\n", ["learning_rates"]),
    "an unknown model": (SPEC.replace("demo:llama-mini", "./nowhere"), ["./nowhere"]),
    "no data": (SPEC.replace("demo:facts-300", "nowhere.jsonl"), ["nowhere.jsonl"]),
    "empty": ("", ["study.yaml"]),
}


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def check(cli, place: Path, words: list[str], said: list[str]) -> None:
    before = listing(place)
    told = cli(*words)
    assert told.code == 2, told.err
    assert told.out == ""
    assert "Traceback" not in told.err
    assert all(f"{label}:" in told.err for label in ("given", "found", "instead"))
    for part in said:
        assert part in told.words, f"{part!r} is not in: {told.words}"
    assert listing(place) == before

    as_json = cli(*words, "--json")
    assert as_json.code == 2
    assert "Traceback" not in as_json.err
    error = as_json.json["error"]
    assert set(error) == {"code", "given", "found", "instead"}
    assert all(isinstance(text, str) and text.strip() for text in error.values())
    assert listing(place) == before


@pytest.mark.parametrize(("words", "said"), CASES.values(), ids=CASES.keys())
def test_command(cli, place: Path, words: list[str], said: list[str]):
    check(cli, place, words, said)


@pytest.mark.parametrize(("spec", "said"), SPECS.values(), ids=SPECS.keys())
def test_study_file(cli, place: Path, spec: str, said: list[str]):
    (place / "study.yaml").write_text(spec)
    check(cli, place, ["study", "study.yaml"], said)


def test_the_caret_stands_below_its_character(cli, place: Path):
    told = cli(*at("q + attn..v:16"))
    shown = told.err.splitlines()
    caret = next(i for i, line in enumerate(shown) if line.lstrip().startswith("^"))
    assert shown[caret - 1][shown[caret].index("^")] == "."
