"""Names and expressions of a config are bounded before anything is matched: none of these would come back."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
from tests.adapters.test_adapter_files import trained
from tests.tiny import tiny_model

from loratlas.adapters.stored import expressions
from loratlas.adapters.stored.adapter_files import save_adapter
from loratlas.adapters.stored.expressions import MOST_STEPS, excess, pattern_value, slow, steps
from loratlas.adapters.stored.load_adapter import load_adapter
from loratlas.adapters.stored.read_adapter import MARKER, read_adapter
from loratlas.errors import ModelError
from loratlas.lint.lint_config import lint
from loratlas.serving.adapter_header import read_adapter_header
from loratlas.sources import read

NAMES = [f"model.layers.{layer}.self_attn.{leaf}_proj" for layer in range(30) for leaf in "qkvo"]
UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
    r"(?:k_proj|v_proj|q_proj|out_proj|fc1|fc2|gate_proj|up_proj|down_proj).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn)\.(?:(?:q_proj|k_proj|v_proj)))"
)
ENDLESS = (
    r"(.|\w)+Q",
    r"(\w|\w\w|\.)*Q",
    ".?" * 30 + "." * 30 + "Q",
    ".*" * 10 + "Q",
    "(.{1,20}){1,20}Q",
    "(q|q.|.q|..|.)" * 30 + "Q",
    r"(.*)(.*)(.*)(.*)(.*)(.*)\1\2\3\4Q",
    r"(?=.*.*.*.*.*.*.*.*.*Q)x",
)


@pytest.mark.parametrize("expression", ENDLESS)
@pytest.mark.parametrize(
    "field", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "layers_pattern"]
)
def test_endless_expressions_of_every_field(field, expression):
    value = {expression: 4} if field.endswith("a_pattern") or field == "rank_pattern" else expression
    problem = excess({field: value}) or slow({field: value}, NAMES)
    assert problem is not None
    assert problem.where == field


@pytest.mark.parametrize(
    "expression",
    [
        UNSLOTH,
        r".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$",
        r".*layers\.(0|1|2[0-9])\..*_proj",
        r"(?:model\.)?layers\.\d+\.(?!mlp).*",
        "^(?:" + "|".join(map(re.escape, NAMES)) + ")$",
    ],
)
def test_what_people_write_passes(expression):
    assert excess({"target_modules": expression}) is None
    assert slow({"target_modules": expression}, NAMES) is None


def test_patterns_of_a_large_model_are_not_counted_one_by_one(monkeypatch):
    """Five hundred patterns times as many modules took minutes."""
    leaves = [f"self_attn.{leaf}_proj" for leaf in "qkvo"] + [
        f"mlp.{leaf}_proj" for leaf in ("gate", "up", "down")
    ]
    names = [f"model.language_model.layers.{layer}.{leaf}" for layer in range(80) for leaf in leaves]
    config = {
        "target_modules": "|".join(names),
        "rank_pattern": dict.fromkeys(names, 4),
        "alpha_pattern": {rf".*\.layers\.({layer}|{layer + 1})\..*q_proj": 4 for layer in range(0, 80, 2)},
        "modules_to_save": ["lm_head", "embed_tokens"],
    }
    assert excess(config) is None
    monkeypatch.setattr(expressions, "steps", None)
    assert slow(config, names) is None


def test_many_expressions_that_each_end_are_bounded_together():
    config = {"rank_pattern": {f".*{number}.*.*.*p": 4 for number in range(300)}}
    assert slow({"rank_pattern": dict(list(config["rank_pattern"].items())[:1])}, NAMES) is None
    problem = slow(config, NAMES)
    assert problem is not None
    assert "in all" in problem.found


def test_steps_are_no_fewer_than_the_ways_that_there_are():
    parsed = re._parser.parse("(?:a|b|ab)*c")  # pyright: ignore[reportAttributeAccessIssue]
    counts = [steps(parsed, "ab" * size) for size in (1, 2, 4, 8)]
    assert all(after > 1.9 * before for before, after in itertools.pairwise(counts))
    assert steps(parsed, "ab" * 30) > MOST_STEPS


@pytest.mark.parametrize(
    "config",
    [
        {"rank_pattern": {f"layers.{index}.q": 4 for index in range(100_000)}},
        {"alpha_pattern": {f"layers.{index}.q": 4 for index in range(100_000)}},
        {"target_modules": [f"q{index}" for index in range(100_000)]},
        {"modules_to_save": [f"q{index}" for index in range(100_000)]},
        {"layers_to_transform": list(range(1_000_000))},
        {"target_modules": "q" * 1_000_000},
        {"rank_pattern": {"q" * 1_000_000: 4}},
        {f"field{index}": 1 for index in range(100_000)},
        {"modules_to_save": ["(("]},
        {"layers_pattern": ["(.+)+Q"]},
    ],
)
def test_more_than_any_model_has(config):
    assert excess(config) is not None


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    _, adapted = trained("llama", "q,v:2")
    folder = save_adapter(adapted, tmp_path / "own")
    (folder / "loratlas.json").unlink()
    return folder


@pytest.mark.parametrize(
    "edit",
    [
        {"exclude_modules": ".*" * 10 + "Q"},
        {"modules_to_save": [".*" * 10 + "Q"]},
        {"rank_pattern": {".*" * 10 + "Q": 2}},
        {"layers_pattern": "((", "layers_to_transform": [0]},
        {"lora_alpha": 10**400},
        {"lora_alpha": 1e300},
        {"r": 10**400},
    ],
)
def test_whoever_reads_the_folder_refuses(foreign: Path, tmp_path: Path, edit):
    folder = Path(shutil.copytree(foreign, tmp_path / "theirs"))
    config = json.loads((folder / MARKER).read_text()) | edit
    (folder / MARKER).write_text(json.dumps(config))
    for reader in (
        read_adapter,
        read_adapter_header,
        lambda path: load_adapter(tiny_model("llama"), path),
    ):
        with pytest.raises(ModelError):
            reader(folder)
    base = tiny_model("llama").config
    assert lint(config, read(base), base).findings


def test_an_expression_that_is_slow_on_the_base_alone(foreign: Path):
    """On the adapter's own names it fails at its first letter."""
    config = json.loads((foreign / MARKER).read_text())
    config["exclude_modules"] = "model.emb" + ".*" * 16 + "Q"
    (foreign / MARKER).write_text(json.dumps(config))
    read_adapter(foreign)
    with pytest.raises(ModelError, match="steps on the name"):
        load_adapter(tiny_model("llama"), foreign)


def test_patterns_are_those_of_peft():
    from peft.utils.other import get_pattern_key

    patterns = {"v_proj": 1, r"layers\.1\..*": 2, "q_proj|k_proj": 3, "^model": 4, "o": 5}
    for name in [*NAMES, "q_proj", "model", "o"]:
        key = get_pattern_key(list(patterns), name)
        assert pattern_value(patterns, name, 0) == patterns.get(key, 0)
