"""A plan as Python: what is printed, typed, is exactly the plan, and fits a terminal."""

from __future__ import annotations

import pytest
from tests import zoo
from tests.tiny import TYPES, tiny_config

from loratlas.adapters.peft_check import prove_on_meta
from loratlas.anatomy.read import read
from loratlas.errors import AttachError
from loratlas.placement.canonical import table_text
from loratlas.placement.peft_code import plan_code
from loratlas.placement.plan import place

KINDS = ("llama", "gpt2", "bloom", "gpt_neox", "t5", "bert")


def config_of(kind: str):
    return tiny_config(kind) if kind in TYPES else zoo.small(kind)


def typed(text: str):
    """The config that a text makes, its base without a name, as the tiny ones are."""
    scope: dict = {}
    exec(text, scope)
    assert scope["config"].base_model_name_or_path == "owner/base"
    scope["config"].base_model_name_or_path = None
    return scope["config"]


def ragged(config, **more):
    """A plan with another rank at every other matrix, and none at some."""
    anatomy = read(config)
    sites = [s for s in anatomy.sites if s.layer is not None and s.kind in ("linear", "conv1d")]
    ranks = {site.path: 1 + index % 3 for index, site in enumerate(sites) if index % 5 < 4}
    return place(anatomy, table_text(anatomy, ranks), **more), anatomy


@pytest.mark.parametrize("more", [{}, {"alpha": 7}, {"rslora": True}], ids=["plain", "alpha", "rslora"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_of_many_ranks_is_a_table_by_layer(kind: str, more: dict):
    config = config_of(kind)
    plan, anatomy = ragged(config, **more)
    text = plan_code(plan, anatomy, config, "owner/base")
    made = typed(text)
    prove_on_meta(plan.rows, made, config)
    assert made.use_rslora == plan.rslora
    assert "RANKS = {" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "\\" not in text


def test_a_number_changed_in_the_table_is_another_plan():
    config = tiny_config("llama")
    plan, anatomy = ragged(config)
    text = plan_code(plan, anatomy, config, "owner/base")
    other = text.replace("[1, ", "[2, ", 1)
    assert other != text
    with pytest.raises(AttachError):
        prove_on_meta(plan.rows, typed(other), config)


@pytest.mark.parametrize(
    ("placement", "shown"),
    [("q,v:8", 'target_modules=["q_proj", "v_proj"]'), ("q@0:8", "target_modules=")],
)
def test_one_rank_needs_no_table(placement: str, shown: str):
    config = tiny_config("llama")
    anatomy = read(config)
    plan = place(anatomy, placement)
    text = plan_code(plan, anatomy, config, "owner/base")
    assert shown in text
    assert "RANKS" not in text
    prove_on_meta(plan.rows, typed(text), config)
