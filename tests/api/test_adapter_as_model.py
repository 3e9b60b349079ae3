"""MODEL may be the folder of an adapter, or of a run: each function knows what that means for it."""

from __future__ import annotations

import json
import shutil

import pytest

import loratlas
from loratlas.api.listener import Silent
from loratlas.cli import run as command
from loratlas.errors import ModelError
from loratlas.sources import model_source, named_base

ROWS = [{"prompt": f"{n}+{n}=", "completion": str(2 * n)} for n in range(8)]
SHORT = {"steps": 1, "lr": 0.01, "max_length": 32}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("adapter") / "run"
    return loratlas.train("demo:llama-mini", ROWS, placement="q,v:2", out=out, **SHORT)


def test_map_plan_and_lint_read_its_base(run, capsys):
    base = model_source("demo:llama-mini")
    for folder in (run.adapter, run.adapter.parent):
        assert named_base(str(folder)).adapter == run.adapter
        anatomy = loratlas.read(str(folder))
        assert anatomy.model == base
        assert len(anatomy.sites) == len(loratlas.read("demo:llama-mini").sites)
    assert command(["plan", str(run.adapter), "--placement", "q:2", "--peft"]) == 0
    said = capsys.readouterr()
    assert f'base_model_name_or_path="{base}"' in said.out.replace("'", '"')
    assert "an adapter, which stands for its base" in said.err
    assert command(["lint", str(run.adapter), str(run.adapter)]) == 0


def test_evaluate_puts_it_on_its_base(run):
    hear = Silent()
    here = loratlas.evaluate(run.adapter, ROWS, max_length=32, listener=hear)
    written = loratlas.evaluate("demo:llama-mini", ROWS, adapter=run.adapter, max_length=32)
    alone = loratlas.evaluate("demo:llama-mini", ROWS, max_length=32, dtype=here.numbers["dtype"])
    assert here.nll == written.nll != alone.nll
    assert here.numbers["adapter"] == str(run.adapter)
    assert any("evaluated on that base" in note for note in hear.notes)


def test_train_goes_on_with_it_or_begins_anew_where_a_placement_is_given(run, tmp_path):
    hear = Silent()
    further = loratlas.train(run.adapter, ROWS, out=tmp_path / "further", listener=hear, **SHORT)
    assert further.numbers["from"] == str(run.adapter)
    assert any("trained further" in note for note in hear.notes)
    anew = loratlas.train(run.adapter, ROWS, placement="q:1", out=tmp_path / "anew", **SHORT)
    assert anew.numbers["from"] is None
    config = json.loads((anew.adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == model_source("demo:llama-mini")


def test_a_merged_model_is_an_ordinary_base(run, tmp_path):
    loratlas.export(run, tmp_path / "merged", target="merged")
    merged = loratlas.evaluate(tmp_path / "merged", ROWS, max_length=32, dtype="float32")
    apart = loratlas.evaluate(run.adapter, ROWS, max_length=32, dtype="float32")
    assert merged.nll == pytest.approx(apart.nll, abs=1e-5)
    assert named_base(tmp_path / "merged").adapter is None


def test_an_adapter_without_a_base_is_a_sentence(run, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(run.adapter, folder)
    fields = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(fields | {"base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="does not name its base"):
        loratlas.read(str(folder))
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="no JSON"):
        loratlas.read(str(folder))
