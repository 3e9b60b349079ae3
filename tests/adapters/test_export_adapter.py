"""Exports: checked on bases loaded anew, loaded by the printed recipe, never blocked by what a kill left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.conformance.adapter_cases import CASES, save_bases, save_case

from loratlas.adapters.export.check_export import Request, difference, fixed_logits, load_with_peft
from loratlas.adapters.export.export_adapter import export, write_export
from loratlas.adapters.export.loading_recipe import adapter_recipe, base_options
from loratlas.adapters.stored.adapter_task import open_base_config, task_of
from loratlas.adapters.stored.load_adapter import load_adapter
from loratlas.adapters.stored.read_adapter import read_adapter
from loratlas.cli import run
from loratlas.errors import ModelError
from loratlas.models.config import load_config
from loratlas.models.load import load_model
from loratlas.models.task import Task

BY_NAME = {case.name: case for case in CASES}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_bases(tmp_path_factory.mktemp("bases"))


def saved(name: str, bases: dict[str, Path], folder: Path) -> Path:
    case = BY_NAME[name]
    return save_case(case, bases[case.base], folder)


def loaded(recipe: str):
    names: dict = {}
    exec(recipe, names)
    return names["model"]


@pytest.mark.parametrize("target", ["peft", "merged"])
@pytest.mark.parametrize(
    "name", ["plain", "targets", "sequence classes, encoder with its pooler", "init pissa"]
)
def test_the_printed_recipe_loads_what_was_written(bases, tmp_path, name, target):
    adapter = saved(name, bases, tmp_path / "a")
    written, request = write_export(adapter, tmp_path / "out", target=target)
    got = loaded(written.recipe)
    got = got.get_base_model() if hasattr(got, "get_base_model") else got
    wanted = fixed_logits(load_with_peft(request, str(adapter)), request)
    torch.testing.assert_close(fixed_logits(got, request), wanted, rtol=1e-4, atol=1e-4)


def test_a_base_with_another_head_is_loaded_without_it(bases, tmp_path):
    options = base_options(Task(name="classification", labels=("a", "b", "c", "d")), 0, new_head=True)
    recipe = adapter_recipe(
        str(bases["bert classes"]),
        "nowhere",
        task=Task(name="classification"),
        dtype="bfloat16",
        options=options,
    )
    names: dict = {}
    exec(recipe.rpartition("\n")[0], names)
    assert names["base"].config.id2label[3] == "d"
    assert names["base"].dtype == torch.bfloat16


def test_a_difference_that_is_no_number_fails(bases, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    adapter = saved("plain", bases, tmp_path / "a")
    base = tmp_path / "base"
    base.mkdir()
    for file in bases["llama"].iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    state = load_file(base / "model.safetensors")
    state["model.norm.weight"][0] = float("nan")
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    words = [
        "export",
        str(adapter),
        "--for",
        "peft",
        "--base",
        str(base),
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    assert run(words) == 1
    assert json.loads(capsys.readouterr().out)["check"] is None


def test_what_differs_is_seen(bases, tmp_path):
    one, two = saved("plain", bases, tmp_path / "a"), saved("rslora", bases, tmp_path / "b")
    fields = {"base": str(bases["llama"]), "kind": "CausalLM", "dtype": "float32", "merged": False}
    assert difference(Request(adapter=str(one), exported=str(one), **fields)) == 0
    assert difference(Request(adapter=str(one), exported=str(two), **fields)) > 1e-2


def test_what_does_not_load_in_a_fresh_process_is_a_sentence(bases, tmp_path):
    from loratlas.adapters.export.check_export import in_fresh_process

    one = saved("plain", bases, tmp_path / "a")
    fields = {"base": str(bases["llama"]), "kind": "CausalLM", "dtype": "float32", "merged": True}
    with pytest.raises(ModelError, match="does not load in a fresh process"):
        in_fresh_process([Request(adapter=str(one), exported=str(tmp_path), **fields)])


def test_what_a_killed_export_left_blocks_nothing(bases, tmp_path):
    adapter = saved("plain", bases, tmp_path / "a")
    left = tmp_path / ".out.999999999.part"
    left.mkdir()
    (left / "half").write_text("x")
    check = export(adapter, tmp_path / "out").check
    assert check == 0
    assert not left.exists()


def test_the_task_is_read_from_tensors(bases, tmp_path):
    config = load_config(bases["llama"])
    right = task_of(read_adapter(saved("sequence classes, decoder", bases, tmp_path / "a")), config)
    wrong = task_of(read_adapter(saved("sequence classes, wrong task type", bases, tmp_path / "b")), config)
    assert right.task == wrong.task == Task(name="classification", labels=("0", "1", "2"))
    assert right.remark is None
    assert wrong.remark is not None
    assert "'CAUSAL_LM'" in wrong.remark
    assert "SEQ_CLS" in wrong.remark


def test_classes_have_the_names_that_the_base_gives_them(bases, tmp_path):
    adapter = saved("sequence classes, encoder with its pooler", bases, tmp_path / "a")
    config = load_config(bases["bert classes"])
    config.id2label = {0: "low", 1: "middle", 2: "high"}
    assert task_of(read_adapter(adapter), config).task.labels == ("low", "middle", "high")
    config.id2label = {0: "low", 1: "high"}
    assert task_of(read_adapter(adapter), config).task.labels == ("0", "1", "2")


@pytest.mark.parametrize(
    "name", ["embedding adapted", "bias all", "tokens trained", "sequence classes, decoder"]
)
def test_detached_the_base_is_as_it_was(bases, tmp_path, name):
    from loratlas.adapters.trained_heads import detach_adapters

    case = BY_NAME[name]
    folder = saved(name, bases, tmp_path / "a")
    contents = read_adapter(folder)
    _, config = open_base_config(contents, contents.base)
    base = load_model(bases[case.base], dtype="float32", config=config)
    before = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    after = detach_adapters(load_adapter(base, folder)).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
