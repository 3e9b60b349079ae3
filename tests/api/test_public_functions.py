"""The public functions take what people have, and return results that print."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

import loratlas
from loratlas.demo import base_path
from loratlas.display import Displayed
from loratlas.errors import SettingsError

ROWS = [{"prompt": f"{n} and {n} make", "completion": f"{2 * n}"} for n in range(12)]
SHORT = {"steps": 2, "lr": 0.01, "max_length": 32, "placement": "q,v:2"}


@pytest.fixture(scope="module")
def run() -> loratlas.Run:
    return loratlas.train("demo:llama-mini", ROWS, evaluate=ROWS, **SHORT)


def test_a_run_is_the_same_from_a_path_a_list_and_a_dataset(run: loratlas.Run, tmp_path: Path):
    import json

    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for rows in (str(path), path, Dataset.from_list(ROWS)):
        assert loratlas.train("demo:llama-mini", rows, **SHORT).train_nll == run.train_nll


def test_a_live_model_is_trained_in_place(run: loratlas.Run):
    model = AutoModelForCausalLM.from_pretrained(base_path(), dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(base_path())
    settings = loratlas.Settings(dtype="float32")
    trained = loratlas.train(model, ROWS, tokenizer=tokenizer, settings=settings, **SHORT)
    assert trained.trainable == run.trainable
    assert trained.model.get_base_model() is model


def test_results_print_as_text_and_as_html_and_plot(run: loratlas.Run):
    evaluation = loratlas.evaluate("demo:llama-mini", ROWS, adapter=run.adapter, definitions=True)
    scan = loratlas.scan("demo:llama-mini", ROWS, by="gradient", budget="like=q:1", max_length=32)
    plan = loratlas.place("demo:llama-mini", "q:2")
    for result in (run, evaluation, scan, plan, loratlas.read("demo:llama-mini")):
        assert isinstance(result, Displayed)
        assert "\x1b" not in str(result)
        assert max(map(len, str(result).splitlines())) <= 80
        assert "<table>" in result._repr_html_()
    for result in (run, evaluation, scan):
        assert result.plot().data


def test_evaluation_of_a_run_says_what_the_run_says(run: loratlas.Run):
    evaluation = loratlas.evaluate("demo:llama-mini", ROWS, adapter=run.adapter)
    assert run.evaluation is not None
    assert evaluation.nll == pytest.approx(run.evaluation["token_mean_nll"], abs=1e-6)


def test_an_exported_run_computes_the_same(run: loratlas.Run, tmp_path: Path):
    assert loratlas.export(run, tmp_path / "out").check < 1e-3


def test_a_run_without_a_folder_is_saved_afterwards(run: loratlas.Run, tmp_path: Path):
    assert (run.save(tmp_path / "kept") / "adapter_config.json").is_file()


def test_rooms_do_not_hide_functions_of_their_name():
    code = (
        "from loratlas.scan.scores import load_scan\nfrom loratlas.study.results.estimator import estimate\n"
        "import loratlas\nassert callable(loratlas.scan) and callable(loratlas.study)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_nothing_is_resumed_without_a_folder():
    with pytest.raises(SettingsError, match="resume"):
        loratlas.train("demo:llama-mini", ROWS, resume=True, **SHORT)
