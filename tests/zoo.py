"""Small configs of every type that transformers maps to a model for text.

>>> config = small("llama")
>>> config.num_hidden_layers, config.hidden_size
(4, 64)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

LAYERS = 4
"""At most, of every tower."""

_DEPTHS = {
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers",
    "num_encoder_layers", "num_decoder_layers", "depth",
}  # fmt: skip
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}

# Field of a config → its largest small value. Sizes differ from one another wherever they may.
_SIZES: dict[str, int] = {
    "vocab_size": 250,
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_dim"), 64),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
         "decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"),
        4,
    ),
    **dict.fromkeys(("head_dim", "d_kv", "d_head", "attention_head_size", "qk_nope_head_dim"), 16),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "d_ff", "d_inner", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim",
         "ffn_hidden_size", "dff", "dim_ff"),
        96,
    ),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 8),
    "num_key_value_heads": 2,
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 48,
    "num_experts_per_tok": 2,
    "q_lora_rank": 24,
    "kv_lora_rank": 20,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}  # fmt: skip

_SPARSE = {
    "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8,
    "indexer_compress_ratio": 2,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
}  # fmt: skip

# What a type needs beyond that: fields without which transformers does not build it, or sizes that must fit.
_EXACT: dict[str, dict[str, Any]] = {
    **{name: {"num_key_value_heads": 4} for name in ("axk1", "deepseek_v3", "youtu")},
    "mistral4": {"qk_rope_head_dim": 64, "qk_nope_head_dim": 64, "num_key_value_heads": 4},
    "zamba": {"num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 2},
    "blt": {"encoder_hash_byte_group_vocab": 300},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4}, "max_seq_len": 128},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 32},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 16},
    "dots1": {"n_routed_experts": 8, "first_k_dense_replace": 1, "n_shared_experts": 2},
    "dots3_note": {"text_config": {"num_key_value_heads": 4, "head_dim": 24}, "vision_config": {"num_hidden_layers": 42}},
    "dots3_note_text": {"num_key_value_heads": 4},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "esmc": {"num_key_value_heads": 4},
    "gemma3n_text": {"num_kv_shared_layers": 1, "vocab_size_per_layer_input": 250, "laurel_rank": 12},
    "gemma4": {"text_config": {"model_type": "gemma4_text", "vocab_size_per_layer_input": 250}},
    "gemma4_text": {"vocab_size_per_layer_input": 250},
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]]},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "lilt": {"hidden_size": 96},
    "longcat_flash": {
        "num_key_value_heads": 4, "expert_ffn_hidden_size": 40, "zero_expert_num": 2, "n_routed_experts": 8,
    },
    "luke": {"entity_vocab_size": 40, "entity_emb_size": 32},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 12},
    "ministral": {"head_dim": 16},
    "mobilebert": {"hidden_size": 64, "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    "nemo_speechlm": {
        "audio_config": {
            "asr_config": {"num_key_value_heads": 4},
            "diarization_config": {
                "audio_config": {"num_key_value_heads": 4}, "head_config": {"audio_hidden_size": 64},
            },
        },
        "word_timestamp_config": {"blank_token_id": 0, "num_key_value_heads": 4},
    },
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp": {"text_config": _SPARSE},
    "qwen4_exp_text": _SPARSE,
    "reformer": {"axial_pos_embds_dim": [24, 40], "axial_pos_shape": [8, 16], "is_decoder": True},
    "roc_bert": {"pronunciation_vocab_size": 30, "shape_vocab_size": 40},
    "squeezebert": {"embedding_size": 64},
    "zamba2": {
        "num_hidden_layers": 4,
        "adapter_rank": 8,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    },
}  # fmt: skip


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


def small(model_type: str, **changes: Any) -> PretrainedConfig:
    """A config of this type with at most four layers in each tower and narrow widths.

    Args:
        model_type: any type that transformers has a config for.
        changes: fields that replace the small ones.
    """
    from transformers import CONFIG_MAPPING

    from loratlas.anatomy.load import quiet

    cls: Any = CONFIG_MAPPING[model_type]
    exact = _EXACT.get(model_type, {})
    with quiet():
        try:
            usual = cls()
        except Exception:
            usual = cls(**exact)
        return cls(**_over(_less(usual), {**exact, **changes}))


def _over(less: dict[str, Any], exact: dict[str, Any]) -> dict[str, Any]:
    """Both, the second first; configs inside configs alike."""
    both = {**less, **exact}
    for name in less.keys() & exact.keys():
        if isinstance(less[name], dict) and isinstance(exact[name], dict):
            both[name] = _over(less[name], exact[name])
    return both


def _less(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in vars(config).items():
        if hasattr(value, "to_diff_dict"):
            inner = _less(value)
            if inner:
                found[name] = {"model_type": value.model_type, **inner}
        elif isinstance(value, int) and not isinstance(value, bool):
            if name in _DEPTHS and value > LAYERS:
                found[name] = LAYERS
            elif value > _SIZES.get(name, value):
                found[name] = _SIZES[name]
            elif name in _IDS and value >= _SIZES["vocab_size"]:
                found[name] = _IDS[name]
    return found


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
