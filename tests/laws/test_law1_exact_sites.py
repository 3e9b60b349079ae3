"""Law 1: a plan touches exactly its sites, on all model types."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.tiny import TYPES, lora_layers, tiny_anatomy, tiny_config, tiny_model

from loratlas.adapters.attach import trainable
from loratlas.placement.plan import place

TEXT = "attention@top/2:3 + feedforward:2 - ffn.down@0"


@pytest.mark.parametrize("model_type", TYPES)
def test_predicted_is_counted_and_gradients_stand_nowhere_else(model_type):
    import torch

    plan = place(tiny_anatomy(model_type), TEXT)
    plan.to_peft(tiny_config(model_type))
    model = plan.attach(tiny_model(model_type), seed=1)
    assert trainable(model) == plan.trainable
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)  # at B = 0 the gradient of A is 0 as well
    tokens = torch.arange(3, 27)[None]
    logits = model(input_ids=tokens, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:]).backward()
    touched = {
        name.removeprefix("base_model.model.").partition(".lora_")[0]
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    assert touched == {row.site.module for row in plan.rows}
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)


@pytest.mark.parametrize("model_type", TYPES)
def test_all_of_every_type(model_type):
    plan = place(tiny_anatomy(model_type), "all:2")
    model = plan.attach(tiny_model(model_type))
    assert trainable(model) == plan.trainable
    assert list(lora_layers(model)) == [row.site.module for row in plan.rows]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_random_tables(data):
    anatomy = tiny_anatomy(data.draw(st.sampled_from(["gpt2", "llama", "phi3", "gpt_neox"])))
    sites = data.draw(st.lists(st.sampled_from(anatomy.adaptable), min_size=1, max_size=8, unique=True))
    chosen = [site for site in sites if site.layer is not None]
    if not chosen:
        return
    text = " + ".join(f'"{site.module}":{data.draw(st.integers(1, 5))}' for site in chosen)
    plan = place(anatomy, text)
    model = plan.attach(tiny_model(anatomy.model_type))
    assert trainable(model) == plan.trainable
    assert {name: layer.r["default"] for name, layer in lora_layers(model).items()} == {
        row.site.module: row.rank for row in plan.rows
    }
