"""Every type that transformers maps to a model for text: read whole, or with a list of unidentified matrices."""

from __future__ import annotations

import re

import pytest
from tests import zoo

from loratlas.anatomy.read import read
from loratlas.errors import ModelError
from loratlas.models.meta import meta_model

# What is unresolved, and why it stays so.
UNRESOLVED = {
    # They make the taps of a convolution for every token: neither a part of attention nor a convolution itself.
    "convbert": {
        "convbert.encoder.layer.*.attention.self.conv_kernel_layer.weight",
        "convbert.encoder.layer.*.attention.self.conv_out_layer.weight",
    },
    # A logit per head that takes attention away from all tokens: no role of the vocabulary.
    "inkling2_text": {"model.layers.*.self_attn.sink_proj.weight"},
}
UNRESOLVED_VARIANTS = {
    "inkling2_text with full attention": {
        "model.layers.*.self_attn.k_sconv.weight_proj.weight",
        "model.layers.*.self_attn.v_sconv.weight_proj.weight",
        "model.layers.*.self_attn.sink_proj.weight",
    },
    # From the stream to a narrower one that the experts work in, and back.
    "nemotron_h with latent experts": {
        "model.layers.*.mixer.fc1_latent_proj.weight",
        "model.layers.*.mixer.fc2_latent_proj.weight",
    },
}
# What does not run on tokens alone, so that the probe has nothing to say.
MUTE = {"voxtral_realtime"}
# What variants are there to show: the roles that the usual config of their type has not.
SHOWN = {
    "bailing_hybrid with attention": {
        "attn.q",
        "attn.kv_a",
        "attn.kv_b",
        "attn.o",
        "attn.gate",
        "mixer.gate",
    },
    "bamba with attention": {"attn.q", "attn.k", "attn.v", "attn.o", "mixer.in", "mixer.out"},
    "bert as a decoder": {"xattn.q", "xattn.k", "xattn.v", "xattn.o"},
    "cohere2_moe with shared and dense": {"shared.gate", "shared.up", "shared.down", "ffn.gate", "moe.down"},
    "deepseek_v2 without a query rank": {"attn.q", "attn.kv_a", "attn.kv_b"},
    "doge with experts": {
        "moe.up",
        "moe.down",
        "router",
        "shared.gate",
        "shared.up",
        "shared.down",
        "attn.index",
    },
    "gemma4 with experts": {"moe.gate_up", "moe.down", "router", "ffn.gate", "residual"},
    "gemma4_text with experts": {"moe.gate_up", "moe.down", "router", "ffn.gate", "residual"},
    "gpt2 with cross-attention": {"xattn.q", "xattn.kv", "xattn.o"},
    "granitemoehybrid with attention": {
        "attn.q",
        "attn.o",
        "mixer.in",
        "mixer.out",
        "shared.gate_up",
        "moe.down",
    },
    "granitemoehybrid without experts": {"attn.q", "mixer.in", "ffn.gate_up", "ffn.down"},
    "granitemoeshared with a shared expert": {"shared.gate_up", "shared.down", "moe.gate_up"},
    "inkling_text with a dense block": {"ffn.gate", "shared.gate", "moe.gate_up", "attn.rel"},
    "jamba with attention": {"attn.q", "mixer.x", "mixer.dt"},
    "kimi_linear with attention": {"attn.q", "attn.kv_a", "mixer.q", "mixer.decay", "mixer.gate"},
    "lfm2 with short convolutions": {"mixer.in", "mixer.out", "conv", "attn.q", "ffn.gate"},
    "minimax_m3_vl_text with sparse attention": {"attn.index", "attn.q"},
    "mvp with prompts": {"proj"},
    "qwen3_moe with a dense block": {"ffn.gate", "ffn.up", "ffn.down", "moe.gate_up"},
    "switch_transformers with dense blocks": {"ffn.up", "ffn.down", "moe.up", "moe.down"},
    "t5 gated": {"ffn.gate", "ffn.up", "ffn.down"},
    "zamba2 with adapters of attention": {"attn.adapter", "ffn.adapter", "attn.q", "ffn.gate_up", "mixer.in"},
}


def _pattern(path: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", path)


@pytest.mark.parametrize("model_type", [name for name in zoo.types() if name not in zoo.NEVER])
def test_every_matrix_of_a_type_is_listed_once_and_known(model_type):
    proof = zoo.proof(model_type)
    config, anatomy = zoo.small(model_type), proof.anatomy
    listed = [site.path for site in anatomy] + [item.path for item in anatomy.unresolved]
    every = [n for n, v in meta_model(config).named_parameters(remove_duplicate=False) if v.ndim >= 2]
    assert sorted(listed) == sorted(every)
    assert {_pattern(item.path) for item in anatomy.unresolved} == UNRESOLVED.get(model_type, set())
    assert all(item.reason for item in anatomy.unresolved)
    # Names, trace and probe: none contradicts another, unless the reviewed table says why.
    assert proof.open == ()
    agrees, speaks = proof.agreement("probe")
    assert (speaks > 0) == (model_type not in MUTE)
    assert agrees == speaks or any(one.table for one in proof.disputes)


@pytest.mark.parametrize("name", zoo.VARIANTS)
def test_what_a_usual_config_hides_is_known_as_well(name):
    model_type, changes = zoo.VARIANTS[name]
    anatomy = read(zoo.small(model_type, **changes))
    assert {_pattern(item.path) for item in anatomy.unresolved} == UNRESOLVED_VARIANTS.get(name, set())
    assert SHOWN.get(name, set()) <= {site.role for site in anatomy}


@pytest.mark.parametrize("model_type", zoo.NEVER)
def test_a_type_that_cannot_be_built_is_refused_and_not_read_in_part(model_type):
    from transformers import CONFIG_MAPPING
    from transformers.utils.import_utils import is_detectron2_available, is_timm_available

    installed = {"gemma3n": is_timm_available(), "layoutlmv2": is_detectron2_available()}
    if installed.get(model_type):
        pytest.skip("the package that it needs is installed")
    part = (
        {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
        if "assistant" in model_type
        else {}
    )
    text = {
        "model_type": model_type.replace("assistant", "text"),
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 4,
    }
    given = {"text_config": part | text} if part else {}
    with pytest.raises(ModelError, match="cannot build it"):
        read(CONFIG_MAPPING[model_type](**given))
