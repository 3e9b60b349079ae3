"""Every recipe is a valid study of the embedded base, and so is the demonstration."""

from __future__ import annotations

from pathlib import Path

import pytest

from loratlas import demo
from loratlas.errors import SpecError
from loratlas.models.real_bases import REAL_BASES
from loratlas.study.spec.spec_file import load_spec, parse_spec

EMBEDDED = [path for name in demo.RECIPES if (path := demo.recipe_path(name)) is not None]
RECIPES = sorted([*(Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"), *EMBEDDED])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_valid_study(path: Path) -> None:
    spec = load_spec(path)
    assert spec.name == path.stem
    assert spec.reference == "full"
    bases = [f"${{LORATLAS_BASES}}/{name}" for name in ("gpt2-mini", "bert-mini", "t5-mini")]
    real = [f"real:{name}" for name in REAL_BASES]
    hub = {"microsoft/DialoGPT-medium": "tatsu-lab/alpaca"}
    assert spec.model in ("demo:llama-mini", "${LORATLAS_MINILM}", *bases, *real, *hub)
    assert not spec.demonstration
    for source in (spec.data.train, spec.data.eval or spec.data.train):
        assert (
            source == hub.get(spec.model)
            or source.startswith("${LORATLAS_SHARED}/data/")
            or source.removeprefix("demo:") in demo.TASKS
        )


def test_there_are_recipes() -> None:
    assert {"alpaca-all1", "alpaca-all8", "gsm8k-all1", "gsm8k-all8"} <= {path.stem for path in RECIPES}


def test_the_demonstration_says_what_it_is() -> None:
    spec = parse_spec(demo.study())
    assert spec.demonstration
    assert spec.evaluation.seeds >= 5
    assert spec.model.removeprefix("demo:") in demo.BASES
    assert spec.data.train.removeprefix("demo:") in demo.TASKS


def test_recipes_of_the_package_are_studies_by_name() -> None:
    assert [path.name for path in EMBEDDED] == ["facts.yaml", "retrieval.yaml"]
    folder = EMBEDDED[0].parent
    assert sorted(folder.iterdir()) == sorted(EMBEDDED)
    assert load_spec("demo:facts") == load_spec(folder / "facts.yaml")
    for path in EMBEDDED:  # no file of anybody's is needed
        assert "${" not in path.read_text(encoding="utf-8")


def test_another_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(SpecError, match="demo:facts, demo:retrieval"):
        load_spec("demo:fact")
