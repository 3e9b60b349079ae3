"""Every recipe is a valid study of the embedded base, and so is the demonstration."""

from __future__ import annotations

from pathlib import Path

import pytest

from loratlas import demo
from loratlas.study.spec.spec_file import load_spec, parse_spec

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_valid_study(path: Path) -> None:
    spec = load_spec(path)
    assert spec.name == path.stem
    assert spec.reference == "full"
    bases = [f"${{LORATLAS_BASES}}/{name}" for name in ("gpt2-mini", "bert-mini", "t5-mini")]
    assert spec.model in ("demo:llama-mini", "${LORATLAS_MINILM}", *bases)
    assert not spec.demonstration
    for source in (spec.data.train, spec.data.eval or ""):
        assert source.startswith("${LORATLAS_SHARED}/data/") or source.removeprefix("demo:") in demo.TASKS


def test_there_are_recipes() -> None:
    assert {"alpaca-all1", "alpaca-all8", "gsm8k-all1", "gsm8k-all8"} <= {path.stem for path in RECIPES}


def test_the_demonstration_says_what_it_is() -> None:
    spec = parse_spec(demo.study())
    assert spec.demonstration
    assert spec.evaluation.seeds >= 5
    assert spec.model.removeprefix("demo:") in demo.BASES
    assert spec.data.train.removeprefix("demo:") in demo.TASKS
