"""Tiny models of all twenty types: built from a config in memory, with no two unlike sizes equal.

>>> sorted(TYPES)[:3]
['bloom', 'cohere', 'falcon']
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from loratlas.anatomy.sites import Anatomy

VOCABULARY, HIDDEN, LAYERS, HEADS, KV_HEADS, INNER, CONTEXT = 96, 48, 3, 6, 2, 80, 64

_LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "intermediate_size": INNER,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ONE_KIND = {name: value for name, value in _LLAMA.items() if name != "num_key_value_heads"}
_IDS = {name: _LLAMA[name] for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}
_GPT2 = {
    **_IDS,
    "n_embd": HIDDEN,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_positions": CONTEXT,
    "n_inner": INNER,
}

TYPES: dict[str, dict[str, Any]] = {
    "gpt2": _GPT2,
    "gpt_bigcode": {**_GPT2, "multi_query": True},
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": {**_LLAMA, "head_dim": 10},
    "gemma": {**_LLAMA, "head_dim": 10},
    "gemma2": {**_LLAMA, "head_dim": 10, "sliding_window": 16, "query_pre_attn_scalar": 10},
    "gemma3_text": {**_LLAMA, "head_dim": 10, "sliding_window": 16, "query_pre_attn_scalar": 10},
    "phi": _LLAMA,
    "phi3": _LLAMA,
    "opt": {
        **_IDS,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "ffn_dim": INNER,
        "max_position_embeddings": CONTEXT,
        "word_embed_proj_dim": 32,
    },
    "gpt_neox": _ONE_KIND,
    "gptj": {**_GPT2, "rotary_dim": 4},
    "gpt_neo": {
        **_IDS,
        "hidden_size": HIDDEN,
        "num_layers": 2,
        "num_heads": HEADS,
        "intermediate_size": INNER,
        "max_position_embeddings": CONTEXT,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
    },
    "falcon": {
        **_IDS,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_kv_heads": KV_HEADS,
        "new_decoder_architecture": True,
        "ffn_hidden_size": INNER,
        "alibi": False,
        "max_position_embeddings": CONTEXT,
    },
    "bloom": {**_IDS, "hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS},
    "mpt": {
        **_IDS,
        "d_model": HIDDEN,
        "n_layers": LAYERS,
        "n_heads": 4,
        "expansion_ratio": 3,
        "max_seq_len": CONTEXT,
    },
    "stablelm": _LLAMA,
    "olmo": _LLAMA,
    "starcoder2": {**_LLAMA, "sliding_window": None},
    "cohere": _LLAMA,
}
"""Model type → config fields. Qwen3 and the gemmas have heads whose sum is not the hidden width."""

DROPOUT_OFF = ("attn_pdrop", "embd_pdrop", "resid_pdrop", "attention_dropout", "hidden_dropout", "dropout",
               "residual_dropout", "embedding_dropout", "embed_dropout", "resid_dropout")  # fmt: skip


def tiny_config(model_type: str, **changes: Any) -> PretrainedConfig:
    """A config of this type with three layers (gpt_neo: two), width 48, 96 tokens and no dropout.

    Args:
        model_type: one of :data:`TYPES`.
        changes: fields that replace the tiny ones.
    """
    from transformers import AutoConfig

    from loratlas.models.quiet import quiet

    with quiet():
        config = AutoConfig.for_model(model_type, **{**TYPES[model_type], **changes})
    for name in DROPOUT_OFF:
        if isinstance(getattr(config, name, None), float):
            setattr(config, name, 0.0)
    return config


def tiny_model(model_type: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A float32 model of :func:`tiny_config` with random weights, in eval mode.

    Biases and norms are random too, so that a wrong treatment of either shows.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from loratlas.models.quiet import quiet

    config = tiny_config(model_type, **changes)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
    model.config.use_cache = False
    model.requires_grad_(False)
    return model.eval()


@cache
def tiny_anatomy(model_type: str) -> Anatomy:
    """The anatomy of :func:`tiny_config`, read once per test session."""
    from loratlas.anatomy.read import read

    return read(tiny_config(model_type))


def lora_layers(model: Any) -> dict[str, Any]:
    """PEFT's LoRA layers by the name that their module has in the bare model, in the model's order."""
    from peft.tuners.lora import LoraLayer

    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
