"""Every type that transformers maps to a model for text, and what its usual config hides."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from loratlas.anatomy.tiny_config import small as small

if TYPE_CHECKING:
    from loratlas.anatomy.compare.reader_opinions import Proof

# Types that are mapped and that transformers builds from no config, and why.
NEVER: dict[str, str] = {
    "gemma3n": "its vision tower needs the package timm (its text part is the type gemma3n_text)",
    "gemma4_assistant": "asks that all layers share keys and values, and then finds none that makes them",
    "gemma4_unified_assistant": "asks that all layers share keys and values, and then finds none that makes them",
    "layoutlmv2": "needs the package detectron2",
}


def types() -> list[str]:
    """Every type that transformers maps to a causal, masked or sequence-to-sequence language model or a classifier."""
    from transformers.models.auto import modeling_auto as auto

    return sorted(
        {
            *auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            *auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
            *auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
            *auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        }
    )


@cache
def proof(model_type: str) -> Proof:
    """The small instance of a type, read and tried out once per process."""
    from loratlas.anatomy.compare.crosscheck import prove

    return prove(small(model_type))


# What the usual config of a type hides → the type, and the fields that show it.
_HYBRID = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
_SHORT = ["conv", "full_attention", "conv", "full_attention"]
_EXPERTS = {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 40}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bailing_hybrid with attention": ("bailing_hybrid", {"layer_types": _HYBRID}),
    "bamba with attention": ("bamba", {"attn_layer_indices": [1, 3]}),
    "bert as a decoder": ("bert", {"is_decoder": True, "add_cross_attention": True}),
    "big_bird with full attention": ("big_bird", {"attention_type": "original_full"}),
    "bigbird_pegasus with full attention": ("bigbird_pegasus", {"attention_type": "original_full"}),
    "cohere2_moe with shared and dense": (
        "cohere2_moe",
        {"num_shared_experts": 1, "first_k_dense_replace": 1, "prefix_dense_intermediate_size": 96},
    ),
    "deberta-v2 with a convolution": ("deberta-v2", {"conv_kernel_size": 3}),
    "deepseek_v2 without a query rank": ("deepseek_v2", {"q_lora_rank": None}),
    "deepseek_v3 without a query rank": ("deepseek_v3", {"q_lora_rank": None}),
    "doge with experts": ("doge", {"is_moe": True, "num_experts": 16}),
    "falcon with groups": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gemma4 with experts": ("gemma4", {"text_config": _EXPERTS}),
    "gemma4_text with experts": ("gemma4_text", _EXPERTS),
    "gpt2 with cross-attention": ("gpt2", {"add_cross_attention": True}),
    "granitemoe_swa with a shared expert": ("granitemoe_swa", {"shared_intermediate_size": 48}),
    "granitemoehybrid with attention": ("granitemoehybrid", {"layer_types": _HYBRID}),
    "granitemoehybrid without experts": (
        "granitemoehybrid",
        {"layer_types": _HYBRID, "num_local_experts": 0},
    ),
    "granitemoeshared with a shared expert": ("granitemoeshared", {"shared_intermediate_size": 48}),
    "inkling2_text with full attention": (
        "inkling2_text",
        {"layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    "inkling_text with a dense block": ("inkling_text", {"mlp_layer_types": ["dense", "sparse"] * 2}),
    "jamba with attention": ("jamba", {"attn_layer_period": 2, "attn_layer_offset": 1}),
    "kimi_linear with attention": ("kimi_linear", {"layer_types": _HYBRID}),
    "lfm2 with short convolutions": ("lfm2", {"layer_types": _SHORT}),
    "longt5 with global attention": ("longt5", {"encoder_attention_type": "transient-global"}),
    "longt5 gated": ("longt5", {"feed_forward_proj": "gated-gelu"}),
    "minimax_m3_vl_text with sparse attention": (
        "minimax_m3_vl_text",
        {"layer_types": ["full_attention", "minimax_m3_sparse"] * 2},
    ),
    "mt5 without gate": ("mt5", {"feed_forward_proj": "relu"}),
    "mvp with prompts": ("mvp", {"use_prompt": True}),
    "nemotron_h with latent experts": ("nemotron_h", {"moe_latent_size": 32}),
    "qwen2_moe with a dense block": ("qwen2_moe", {"mlp_only_layers": [1]}),
    "qwen3_moe with a dense block": ("qwen3_moe", {"mlp_only_layers": [1]}),
    "reformer as an encoder": ("reformer", {"is_decoder": False}),
    "switch_transformers with dense blocks": (
        "switch_transformers",
        {"num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2},
    ),
    "t5 gated": ("t5", {"feed_forward_proj": "gated-gelu"}),
    "zamba2 with adapters of attention": (
        "zamba2",
        {"use_shared_attention_adapter": True, "num_key_value_heads": 4},
    ),
}
