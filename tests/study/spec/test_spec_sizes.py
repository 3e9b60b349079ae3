"""A study's sizes and files by option: the study that is asked for is the one that is checked and named."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from loratlas.errors import SpecError
from loratlas.study.spec.spec_file import load_spec, parse_spec

ROOT = Path(__file__).parents[3]
TEXT = """
name: s
model: demo:llama-mini
data: {train: "demo:facts-300", limit: 200}
arms: {full: "all:8", attention: "attention:8"}
steps: 200
sizes:
  cpu:
    steps: 20
    data: {limit: 50}
    arms: {full: "all:2", q: "q:2"}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_a_size_replaces_keys_and_has_its_own_name_and_digest(file):
    whole, small = load_spec(file), load_spec(file, size="cpu")
    assert (whole.steps, small.steps) == (200, 20)
    assert (small.data.train, small.data.limit) == ("demo:facts-300", 50)
    assert set(small.arms) == {"full", "q"}
    assert (whole.name, small.name) == ("s", "s-cpu")
    assert whole.digest != small.digest
    assert parse_spec(TEXT).digest == whole.digest  # sizes that are not asked for are no part of it


def test_files_are_replaced_by_option(file):
    spec = load_spec(file, model="demo:other", train="a.jsonl", eval="b.jsonl")
    assert (spec.model, spec.data.train, spec.data.eval, spec.data.limit) == (
        "demo:other",
        "a.jsonl",
        "b.jsonl",
        200,
    )


def test_another_size_is_refused(file, tmp_path):
    with pytest.raises(SpecError, match="has cpu") as refused:
        load_spec(file, size="gpu")
    assert refused.value.instead == "--size cpu"
    plain = tmp_path / "plain.yaml"
    plain.write_text(TEXT.partition("sizes:")[0], encoding="utf-8")
    with pytest.raises(SpecError, match="no sizes"):
        load_spec(plain, size="cpu")
    broken = tmp_path / "broken.yaml"
    broken.write_text(TEXT.partition("sizes:")[0] + "sizes: [1]\n", encoding="utf-8")
    with pytest.raises(SpecError, match="no keys with values"):
        load_spec(broken)


@pytest.mark.parametrize("size", [None, "quick", "cpu"])
def test_the_founding_study_s_recipe_is_a_study_at_every_size(size):
    spec = load_spec(ROOT / "recipes/dialogpt-alpaca.yaml", size=size)
    assert spec.arms[spec.reference].placement == 'legacy:"c_attn,c_proj,c_fc":16'
    rates = spec.learning_rates
    assert all(1.5 < high / low < 1.7 for low, high in pairwise(rates))


def test_splits_go_with_the_rows_that_they_are_of():
    recipe = ROOT / "recipes/dialogpt-alpaca.yaml"
    assert load_spec(recipe).data.split is not None
    own = load_spec(recipe, train="a.jsonl", eval="b.jsonl").data
    assert (own.split, own.eval_split) == (None, None)
