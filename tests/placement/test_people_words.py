"""The names that people know from PEFT: ends of module names, and all-linear."""

from __future__ import annotations

import pytest
from tests.placement.toy import anatomy, mixture, site
from tests.tiny import TYPES, tiny_anatomy, tiny_model

from loratlas.anatomy.sites import Unresolved
from loratlas.errors import PlacementError
from loratlas.placement.language import parse
from loratlas.placement.plan import place
from loratlas.placement.resolve import resolve


def modules(text, model):
    return {site.module for site, _ in resolve(parse(text), model, default=1)}


def refused(text, model):
    with pytest.raises(PlacementError) as caught:
        resolve(parse(text), model, default=1)
    return caught.value


@pytest.mark.parametrize(
    ("model_type", "written", "meant"),
    [
        ("llama", "q_proj,v_proj:8", "q,v:8"),
        ("llama", "self_attn.o_proj", "attn.o"),
        ("llama", "mlp.down_proj@top/2", "ffn.down@top/2"),
        ("llama", "attn + mlp", "all"),
        ("llama", "lm_head:4", "head.lm:4"),
        ("llama", "decoder.q_proj", "q"),
        ("gpt2", "c_attn:4", "attn.qkv:4"),
        ("gpt2", "attn.c_proj", "attn.o"),
        ("gpt2", "mlp.c_proj", "ffn.down"),
        ("gpt2", "c_attn,attn.c_proj,c_fc,mlp.c_proj", "all"),
        ("bloom", "query_key_value", "attn.qkv"),
        ("gpt_neox", "query_key_value,dense_h_to_4h", "attn.qkv,ffn.up"),
        ("phi3", "qkv_proj", "attn.qkv"),
        ("opt", "fc1", "ffn.up"),
        ("llama", "model.layers.1.self_attn.q_proj", '"model.layers.1.self_attn.q_proj"'),
        ("llama", "model.layers.1.self_attn.q_proj.weight", '"model.layers.1.self_attn.q_proj"'),
        ("llama", "all - down_proj@0", "all - ffn.down@0"),
    ],
)
def test_they_mean_what_the_language_calls_them(model_type, written, meant):
    model = tiny_anatomy(model_type)
    plan = place(model, written)
    assert plan.rows == place(model, meant).rows
    # The table's own text has the words of the language, and gives the same table.
    assert place(model, plan.text).rows == plan.rows
    assert place(model, plan.placement).rows == plan.rows


@pytest.mark.parametrize("model_type", sorted(TYPES))
def test_all_linear_is_what_peft_takes_it_for(model_type):
    from peft import LoraConfig, TaskType
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers

    config = LoraConfig(target_modules="all-linear", task_type=TaskType.CAUSAL_LM)
    theirs = _maybe_include_all_linear_layers(config, tiny_model(model_type)).target_modules
    assert modules("all-linear", tiny_anatomy(model_type)) == theirs


def test_an_end_that_several_roles_share_is_refused_with_their_names():
    error = refused("q,c_proj:8", tiny_anatomy("gpt2"))
    error = refused("c_proj:8", tiny_anatomy("gpt2"))
    assert "attn.o (transformer.h.0.attn.c_proj, …)" in error.found
    assert "ffn.down (transformer.h.0.mlp.c_proj, …)" in error.found
    assert error.suggestions == ("attn.o:8", "ffn.down:8", "attn.o,ffn.down:8")
    # Taken away, it is as unclear.
    assert "2 kinds" in refused("all - c_proj", tiny_anatomy("gpt2")).found


def test_an_end_that_two_towers_share_is_refused():
    error = refused("attn.q:2", anatomy([s for s in mixture().sites if s.scope == "vision"], layers=2))
    assert error.suggestions[0].startswith("vision.")
    both = anatomy(
        [
            site(f"{tower}.layers.{i}.q_proj.weight", "attn.q", (8, 8), layer=i, scope=tower)
            for tower in ("decoder", "vision")
            for i in range(2)
        ],
        layers=2,
    )
    assert refused("q_proj:2", both).suggestions[:2] == ("attn.q:2", "vision.attn.q:2")
    assert modules("vision.q_proj", both) == {"vision.layers.0.q_proj", "vision.layers.1.q_proj"}


def test_an_end_is_whole_words():
    model = anatomy([site("h.0.xc_proj.weight", "attn.o", (8, 8), layer=0)], layers=1)
    assert "c_proj matches nothing" in refused("c_proj:1", model).found
    assert modules("xc_proj", model) == {"h.0.xc_proj"}


def test_an_end_that_an_unidentified_matrix_has_is_refused():
    model = anatomy([site("h.0.q_proj.weight", "attn.q", (8, 8), layer=0)], layers=1)
    odd = Unresolved(path="x.q_proj.weight", module="x.q_proj", shape=(4, 4), reason="odd")
    model = type(model).from_json({**model.to_json(), "unresolved": [odd.to_json()]})
    assert "x.q_proj.weight (odd)" in refused("q_proj", model).found
    assert modules('"h.0.q_proj"', model) == {"h.0.q_proj"}
    assert "x.q_proj" in refused("all-linear", model).found


def test_a_name_of_another_architecture_leads_to_this_one():
    for model_type, written, meant in (
        ("gpt2", "q_proj:8", "attn.qkv:8"),
        ("llama", "c_attn:8", "attn.q:8"),
        ("llama", "query:8", "attn.q:8"),
        ("llama", "fc2:8", "ffn.down:8"),
        ("gpt2", "query_key_value:8", "attn.qkv:8"),
    ):
        assert meant in refused(written, tiny_anatomy(model_type)).suggestions
