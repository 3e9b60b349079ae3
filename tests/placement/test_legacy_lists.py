"""`legacy:"…"` is what PEFT's list of module names adapts, and says so."""

from __future__ import annotations

import json

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from loratlas.errors import PlacementError
from loratlas.placement.language import parse
from loratlas.placement.plan import Plan, place

GPT2 = GPT2Config(n_layer=3, n_embd=32, n_head=4, vocab_size=96, n_positions=64)
LLAMA = LlamaConfig(
    num_hidden_layers=2, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
    vocab_size=64,
)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (GPT2, ["c_attn", "c_proj", "c_fc"]),
        (GPT2, ["c_attn", "c_proj"]),
        (GPT2, ["attn.c_proj", "nothing_here"]),
        (GPT2, ["c_fc"]),
        (LLAMA, ["q_proj", "down_proj"]),
    ],
)
def test_it_adapts_what_peft_s_list_adapts(config, names):
    plan = place(config, f'legacy:"{",".join(names)}":4')
    model = AutoModelForCausalLM.from_config(config)
    peft = get_peft_model(model, LoraConfig(r=4, target_modules=names, fan_in_fan_out=config is GPT2))
    modules = {
        name.removeprefix("base_model.model.") for name, m in peft.named_modules() if hasattr(m, "lora_A")
    }
    assert {row.site.module for row in plan.rows} == modules
    assert plan.trainable == sum(p.numel() for p in peft.parameters() if p.requires_grad)


def test_the_published_reductions_come_out():
    medium = GPT2Config(n_layer=24, n_embd=1024, n_head=16)
    full, attention = (
        place(medium, f'legacy:"{text}":16') for text in ("c_attn,c_proj,c_fc", "c_attn,c_proj")
    )
    assert round(100 * (1 - attention.trainable / full.trainable), 2) == 31.25
    assert round(100 * (1 - place(medium, 'legacy:"c_fc":16').of_model), 2) == 99.45


def test_it_says_what_each_name_holds():
    (warning,) = place(GPT2, 'legacy:"c_attn, c_proj, nothing_here":4 + ffn.up:2').warnings
    assert "c_attn: 3 attn.qkv;" in warning
    assert "c_proj: 3 attn.o, 3 ffn.down;" in warning
    assert "nothing_here: nothing" in warning
    assert place(GPT2, "attention:4").warnings == []
    assert place(GPT2, 'legacy:"c_fc":4').to_json()["warnings"]


def test_its_text_reads_back_and_a_plan_goes_through_json():
    text = 'legacy:"c_attn,c_proj"@0..2:4 - "transformer.h.1.mlp.c_proj"'
    assert parse(text).text == text
    assert parse('legacy : "c_fc" : 4').text == 'legacy:"c_fc":4'
    plan = place(GPT2, text)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert {row.site.layer for row in plan.rows} == {0, 1}


def test_a_list_that_holds_nothing_is_refused():
    with pytest.raises(PlacementError, match="matches nothing"):
        place(GPT2, 'legacy:"q_proj,v_proj":4')
    with pytest.raises(PlacementError, match="no path between"):
        place(GPT2, 'legacy:"":4')
