"""`check` and `lint` on the command line: exit codes, JSON, the hook, and inputs that cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tests.adapters.test_adapter_files import trained

from loratlas.adapters.stored.adapter_files import save_adapter


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    _, model = trained("llama", "q,v:2")
    return save_adapter(model, tmp_path_factory.mktemp("check") / "a")


def test_check_exits_by_what_was_asked_for(cli, folder):
    right = cli("check", folder, "--for", "peft", "--for", "vllm", "--json")
    assert right.code == 0
    assert right.json["engines"] == {name: {"verdict": "right", "reasons": []} for name in ("peft", "vllm")}
    wrong = cli("check", folder, "--for", "mlx", "--json")
    assert wrong.code == 1
    assert wrong.json["engines"]["mlx"]["verdict"] == "refused"
    assert {"tensor", "what", "factor"} <= set(wrong.json["engines"]["mlx"]["reasons"][0])
    table = cli("check", folder)
    assert table.code == 1
    assert max(map(len, table.out.splitlines()[:12])) <= 80


def test_the_hook_is_a_command_that_exists(cli, folder):
    hook = yaml.safe_load(Path(".pre-commit-hooks.yaml").read_text())[0]
    words = [*hook["entry"].split()[1:], *hook["args"]]
    assert cli(*words, folder / "adapter_config.json").code == 0
    two = cli(*words, folder / "adapter_config.json", folder, "--json")
    assert [each["engines"]["peft"]["verdict"] for each in two.json["adapters"]] == ["right", "right"]


def test_an_unknown_engine_names_the_nearest(cli, folder):
    done = cli("check", folder, "--for", "vlm", "--json")
    assert done.code == 2
    assert done.json["error"]["instead"] == "vllm"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff" * 40, "too short for the header"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        ((10).to_bytes(8, "little") + b'{"a": {}} ', "without type"),
    ],
)
def test_hostile_headers(cli, folder, tmp_path, content, says):
    (tmp_path / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
    (tmp_path / "adapter_model.safetensors").write_bytes(content)
    done = cli("check", tmp_path)
    assert done.code == 2
    assert says in done.words


def test_lint_before_training(cli, tmp_path):
    config = tmp_path / "lora.yaml"
    config.write_text("r: 8\ntarget_modules: [query, v_proj]\n")
    done = cli("lint", config, "demo:llama-mini", "--json")
    assert done.code == 1
    assert done.json["findings"][0]["rule"] == "no-match"
    assert done.json["findings"][0]["instead"] == "q_proj"
    config.write_text("r: 8\ntarget_modules: [q_proj, v_proj]\n")
    good = cli("lint", config, "demo:llama-mini")
    assert good.code == 0
    assert "nothing found; PEFT adapts 16 matrices" in good.out
    assert cli("lint", tmp_path / "none.json", "demo:llama-mini").code == 2


def test_what_plan_prints_is_clean(cli, tmp_path):
    fields = cli("plan", "demo:llama-mini", "--placement", "q,v:8 + ffn.down:4", "--json").json["peft"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    assert cli("lint", tmp_path, "demo:llama-mini").code == 0
