"""The same architecture, small: few layers, narrow widths, few experts; every kind of block kept.

A small instance runs on any machine, so that what a matrix does can be tried out with real numbers. No weights of
the model it stands for are needed.

>>> config = small("llama")
>>> config.num_hidden_layers, config.hidden_size
(4, 64)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loratlas.models.quiet import quiet

if TYPE_CHECKING:
    from transformers import PretrainedConfig

LAYERS = 4
"""At most, of every tower of a type's usual config."""

_DEPTHS = {
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers",
    "num_encoder_layers", "num_decoder_layers", "depth",
}  # fmt: skip
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}

# Field of a config → its largest small value. Sizes differ from one another wherever they may.
_SIZES: dict[str, int] = {
    "vocab_size": 250,
    **dict.fromkeys(("hidden_size", "hidden_size_global", "d_model", "n_embd", "dim", "emb_dim", "embedding_dim"), 64),
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
    "image_size": 224,
    "num_filters": 4,
    "d_latents": 64,
    "num_latents": 37,
    "num_self_attends_per_block": 4,
    "rotary_dim": 8,
    **dict.fromkeys(("n_group", "num_expert_group"), 2),
    "topk_group": 1,
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 48,
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token"), 2),
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
    "mistral4": {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "head_dim": 16},
    "zamba": {"num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 2},
    "blt": {"encoder_hash_byte_group_vocab": 300},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4}, "max_seq_len": 128},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 32},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 16},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_shared_experts": 2},
    "dots3_note": {
        "text_config": {"num_key_value_heads": 4, "head_dim": 24},
        "vision_config": {"num_hidden_layers": 42, "adapter_in_dim": 64, "adapter_out_dim": 64},
        "audio_config": {"adapter_input_size": 64, "adapter_output_size": 64},
    },
    "dots3_note_text": {"num_key_value_heads": 4},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "esmc": {"num_key_value_heads": 4},
    "gemma3n_text": {"num_kv_shared_layers": 1, "vocab_size_per_layer_input": 250, "laurel_rank": 12},
    "gemma4": {"text_config": {"model_type": "gemma4_text", "vocab_size_per_layer_input": 250}},
    "gemma4_text": {"vocab_size_per_layer_input": 250},
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "layoutlmv3": {"coordinate_size": 12, "shape_size": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "lilt": {"hidden_size": 96},
    "longcat_flash": {
        "expert_ffn_hidden_size": 40, "zero_expert_num": 2, "n_routed_experts": 8, "moe_topk": 2,
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
    "phi4_multimodal": {
        "audio_config": {
            "num_blocks": 4, "ext_pw_out_channel": 64, "depthwise_separable_out_channel": 64,
        },
    },
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


def small(model_type: str, **changes: Any) -> PretrainedConfig:
    """A config of this type with at most four layers in each tower and narrow widths.

    Args:
        model_type: any type that transformers has a config for.
        changes: fields that replace the small ones.
    """
    from transformers import CONFIG_MAPPING

    cls: Any = CONFIG_MAPPING[model_type]
    exact = _EXACT.get(model_type, {})
    with quiet():
        try:
            usual = cls()
        except Exception:
            usual = cls(**exact)
        return cls(**_over(_less(usual, LAYERS), {**exact, **changes}))


def shrunk(config: PretrainedConfig, *, layers: int) -> PretrainedConfig:
    """The same config, narrow and with its first layers only; everything that is no size stays as it is.

    Args:
        config: of any size.
        layers: how many blocks to keep in each tower: enough to have one of every kind.

    Raises:
        Exception: of any class, where transformers refuses sizes that it cannot fit together.
    """
    cls: Any = type(config)
    mine = config.to_dict()
    less = _less(config, layers)
    exact = {
        name: value
        for name, value in _EXACT.get(config.model_type, {}).items()
        if isinstance(value, int)
        and isinstance(mine.get(name), int)
        and value < mine[name]
        and name not in _DEPTHS
    }
    for name in ("architectures", "model_type", "transformers_version"):
        mine.pop(name, None)
    with quiet():
        return cls(**_over(mine, _over(less, exact)))


def _over(less: dict[str, Any], exact: dict[str, Any]) -> dict[str, Any]:
    """Both, the second first; configs inside configs alike."""
    both = {**less, **exact}
    for name in less.keys() & exact.keys():
        if isinstance(less[name], dict) and isinstance(exact[name], dict):
            both[name] = _over(less[name], exact[name])
    return both


def _less(config: Any, layers: int) -> dict[str, Any]:
    """The fields whose values are to be smaller."""
    smaller: dict[str, Any] = {}
    for name, value in vars(config).items():
        if hasattr(value, "to_diff_dict"):
            inner = _less(value, layers)
            if inner:
                smaller[name] = {"model_type": value.model_type, **inner}
        elif isinstance(value, int) and not isinstance(value, bool):
            if name in _DEPTHS and value > layers:
                smaller[name] = layers
            elif value > _SIZES.get(name, value):
                smaller[name] = _SIZES[name]
            elif name in _IDS and value >= _SIZES["vocab_size"]:
                smaller[name] = _IDS[name]
    return smaller | _compressed(vars(config), smaller)


def _compressed(fields: dict[str, Any], smaller: dict[str, Any]) -> dict[str, Any]:
    """What must stay equal in attention with compressed keys: their heads, and the part that is turned."""
    pairs = (("num_key_value_heads", "num_attention_heads"), ("head_dim", "qk_rope_head_dim"))
    return {
        name: smaller.get(like, fields[like])
        for name, like in pairs
        if "qk_rope_head_dim" in fields and fields.get(name) == fields.get(like) is not None
    }
