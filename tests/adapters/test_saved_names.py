"""What is saved is what most tools read: whole names in a list, whole alphas; an expression only where it must be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.tiny import tiny_model

from loratlas.adapters.attach import attach
from loratlas.adapters.peft_targets import restore_full_names
from loratlas.adapters.stored.adapter_files import save_adapter
from loratlas.adapters.stored.load_adapter import load_adapter
from loratlas.placement.plan import place
from loratlas.sources import read


@pytest.mark.parametrize("placement", ["q,v:8 + ffn.down:4", "all:2"])
def test_a_plan_is_saved_by_names(tmp_path: Path, placement: str):
    model = tiny_model("llama")
    plan = place(read(model.config), placement)
    peft = attach(plan.rows, model)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    tokens = torch.tensor([[1, 5, 9, 20]])
    wanted = peft(input_ids=tokens).logits
    save_adapter(peft, tmp_path / "a", plan_json=plan.to_json())
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(row.site.module for row in plan.rows)
    assert type(config["lora_alpha"]) is int
    assert all(type(alpha) is int for alpha in config["alpha_pattern"].values())
    again = load_adapter(tiny_model("llama"), tmp_path / "a")
    torch.testing.assert_close(again(input_ids=tokens).logits, wanted)


def test_an_expression_stays_where_a_list_would_hit_more():
    config = LoraConfig(target_modules=r"^(?:proj)$", lora_alpha=3.0)
    restore_full_names(config, ["proj"], [], ["proj", "tower.proj"])
    assert config.target_modules == r"^(?:proj)$"
    restore_full_names(config, ["proj"], [], ["proj", "tower.other"])
    assert config.target_modules == ["proj"]


def test_a_list_of_peft_is_whole_again(tmp_path: Path):
    model = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"], lora_alpha=5))
    save_adapter(model, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["target_modules"] == [f"model.layers.{layer}.self_attn.q_proj" for layer in range(3)]
    assert config["lora_alpha"] == 5
