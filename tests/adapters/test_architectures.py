"""Laws 1 and 7 on fifty architectures: plan → attach → a step → save → load → merge."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from tests.adapters.architectures import TYPES, config, model

from loratlas.adapters.attach import trainable
from loratlas.adapters.peft_targets import adapted
from loratlas.adapters.stored.adapter_files import save_adapter
from loratlas.adapters.stored.load_adapter import load_adapter
from loratlas.anatomy.read import read
from loratlas.errors import AttachError
from loratlas.placement.plan import place

FAMILIES = ("attn", "xattn", "ffn", "shared", "moe", "mixer")


@cache
def anatomy(model_type):
    return read(config(model_type))


def sites(model_type):
    """Every site in the blocks that an adapter acts on; PEFT keeps off the output of mamba's fused kernel."""
    return [
        site
        for site in anatomy(model_type).adaptable
        if site.family in FAMILIES
        and site.layer is not None
        and not (model_type.startswith("mamba") and site.role == "mixer.out")
    ]


def table(chosen):
    """A placement of these sites, ranks 2 and 3 in turn."""
    return " + ".join(f'"{site.path}":{2 + place % 2}' for place, site in enumerate(chosen))


def inputs(model_type):
    tokens = torch.arange(3, 27)[None]
    if config(model_type).is_encoder_decoder:
        return {"input_ids": tokens, "decoder_input_ids": tokens[:, :12]}
    return {"input_ids": tokens}


def randomise(model):
    """B is 0 at first, and the gradient of A with it."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("model_type", TYPES)
def test_plan_attach_train_save_load_merge(model_type, tmp_path):
    plan = place(anatomy(model_type), table(sites(model_type)))
    plan.to_peft(config(model_type))
    live = plan.attach(model(model_type), seed=1)
    assert trainable(live) == plan.trainable
    randomise(live)
    given = inputs(model_type)
    live(**given).logits.square().mean().backward()
    touched = {
        name
        for name, layer in adapted(live).items()
        if any(p.grad is not None and p.grad.any() for p in layer.parameters() if p.requires_grad)
    }
    assert touched == set(adapted(live))
    assert len(touched) == len(plan.rows)
    assert all(p.grad is None for p in live.parameters() if not p.requires_grad)
    with torch.no_grad():
        for parameter in live.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad.sign()
        wanted = live.eval()(**given).logits
        save_adapter(live, tmp_path / "adapter", plan_json=plan.to_json())
        again = load_adapter(model(model_type), tmp_path / "adapter")
        size = wanted.abs().max()
        assert (again(**given).logits - wanted).abs().max() <= 2e-6 * size
        assert (model(model_type)(**given).logits - wanted).abs().max() > 1e-3 * size
        merged = live.merge_and_unload()
        assert (merged(**given).logits - wanted).abs().max() <= 2e-5 * size


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "deepseek_v3", "qwen3_next", "gpt_oss"])
def test_one_layer_of_a_converted_model_of_experts_is_one_layer(model_type):
    chosen = [site for site in sites(model_type) if site.layer == 1]
    plan = place(anatomy(model_type), table(chosen))
    plan.to_peft(config(model_type))
    live = plan.attach(model(model_type))
    assert set(adapted(live)) <= {name for site in chosen for name in (site.path, site.module)}
    assert trainable(live) == plan.trainable


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_names_are_saved_whole_though_peft_shortens_long_lists(tmp_path):
    chosen = sites("deepseek_v3")
    live = place(anatomy("deepseek_v3"), table(chosen)).attach(model("deepseek_v3"))
    saved = json.loads((save_adapter(live, tmp_path / "a") / "adapter_config.json").read_text())
    named = {*saved["target_modules"], *saved["target_parameters"]}
    assert named == set(adapted(live))
    assert all(name.startswith("model.layers.") for name in named)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_dropout_beside_experts_is_on_the_linear_sites_alone(tmp_path):
    live = place(anatomy("mixtral"), table(sites("mixtral"))).attach(model("mixtral"), dropout=0.25)
    rates = {
        name: getattr(layer.lora_dropout["default"], "p", 0.0)
        for name, layer in adapted(live).items()
        if "experts" not in name
    }
    assert rates
    assert set(rates.values()) == {0.25}
    saved = json.loads((save_adapter(live, tmp_path / "a") / "adapter_config.json").read_text())
    assert saved["lora_dropout"] == 0


def test_what_a_fused_kernel_would_bypass_is_refused_by_name():
    out = next(site for site in anatomy("mamba2") if site.role == "mixer.out")
    plan = place(anatomy("mamba2"), f'"{out.path}":2')
    with pytest.raises(AttachError, match="out_proj"):
        plan.to_peft(config("mamba2"))


@pytest.mark.parametrize("model_type", ["mamba", "mamba2"])
def test_a_refused_placement_says_one_that_works(model_type):
    """Before PEFT refuses it in its own words, and with the model as it was."""
    live = model(model_type)
    with pytest.raises(AttachError) as caught:
        place(anatomy(model_type), "all:2").attach(live)
    assert not getattr(live, "peft_config", None)
    written = caught.value.instead.rpartition("such as ")[2]
    assert written == "all:2 - mixer.out"
    place(anatomy(model_type), written).attach(live)


@pytest.mark.parametrize(
    ("model_type", "task"), [("t5", "SEQ_2_SEQ_LM"), ("bert", None), ("gpt2", "CAUSAL_LM")]
)
def test_the_saved_config_says_what_the_model_is_for(model_type, task):
    plan = place(anatomy(model_type), table(sites(model_type)[:1]))
    result = plan.to_peft(config(model_type)).task_type
    assert (result.value if hasattr(result, "value") else result) == task
    assert plan.attach(model(model_type)).peft_config["default"].task_type == result
