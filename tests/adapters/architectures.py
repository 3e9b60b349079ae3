"""Tiny configs of fifty architectures: encoders, encoder-decoders, experts, hybrids and plain decoders."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel

_IDS: dict[str, Any] = {"vocab_size": 101, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_NEW = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
} | _IDS
_HEAD = _NEW | {"head_dim": 12}
_OLD = {"n_layer": 2, "n_embd": 48, "n_head": 4, "n_positions": 64} | _IDS
_BART = {
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 80,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
} | _IDS
_T5 = {
    "d_model": 48,
    "d_kv": 12,
    "d_ff": 80,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
} | _IDS
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
_MAMBA = {"hidden_size": 48, "num_hidden_layers": 2, "state_size": 8} | _IDS

TYPES: dict[str, dict[str, Any]] = {
    "albert": _NEW | {"embedding_size": 24},
    "bart": _BART,
    "bert": _NEW,
    "bloom": {"n_layer": 2, "hidden_size": 48, "n_head": 4} | _IDS,
    "cohere": _NEW,
    "deberta-v2": _NEW | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deepseek_v3": _NEW
    | {
        "num_key_value_heads": 4,
        "moe_intermediate_size": 40,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "kv_lora_rank": 16,
        "q_lora_rank": 24,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 12,
        "v_head_dim": 12,
        "first_k_dense_replace": 1,
    },
    "distilbert": {"dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 80, "max_position_embeddings": 64}
    | _IDS,
    "electra": _NEW | {"embedding_size": 24},
    "falcon": {"num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 4} | _IDS,
    "gemma": _HEAD,
    "gemma2": _HEAD,
    "gemma3_text": _HEAD,
    "glm": _HEAD,
    "gpt2": _OLD,
    "gpt_bigcode": _OLD,
    "gpt_neo": {
        "num_layers": 2,
        "attention_types": [[["global", "local"], 1]],
        "hidden_size": 48,
        "num_heads": 4,
        "intermediate_size": 80,
        "max_position_embeddings": 64,
    }
    | _IDS,
    "gpt_neox": _NEW,
    "gpt_oss": _HEAD | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gptj": _OLD | {"rotary_dim": 4},
    "granite": _NEW,
    "helium": _HEAD,
    "jamba": _NEW
    | {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 4,
        "mamba_d_state": 8,
        "mamba_dt_rank": 6,
        "use_mamba_kernels": False,
    },
    "llama": _NEW,
    "mamba": _MAMBA | {"time_step_rank": 6},
    "mamba2": _MAMBA | {"num_heads": 8, "head_dim": 12, "n_groups": 2, "chunk_size": 8},
    "marian": _BART,
    "mbart": _BART,
    "mistral": _HEAD,
    "mixtral": _HEAD | {"num_local_experts": 4},
    "modernbert": _NEW
    | {
        "cls_token_id": 1,
        "sep_token_id": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "reference_compile": False,
    },
    "mpnet": _NEW,
    "mpt": {"n_layers": 2, "d_model": 48, "n_heads": 4} | _IDS,
    "mt5": _T5,
    "olmo": _NEW,
    "olmo2": _NEW,
    "olmoe": _NEW | {"num_experts": 4, "num_experts_per_tok": 2},
    "opt": {
        "num_hidden_layers": 2,
        "hidden_size": 48,
        "num_attention_heads": 4,
        "ffn_dim": 80,
        "word_embed_proj_dim": 24,
        "max_position_embeddings": 64,
    }
    | _IDS,
    "pegasus": _BART,
    "phi": _NEW,
    "phi3": _NEW,
    "qwen2": _NEW,
    "qwen3": _HEAD,
    "qwen3_moe": _HEAD | _EXPERTS,
    "qwen3_next": _HEAD
    | _EXPERTS
    | {
        "shared_expert_intermediate_size": 40,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "roberta": _NEW,
    "smollm3": _NEW | {"no_rope_layers": [1, 0]},
    "stablelm": _NEW | {"partial_rotary_factor": 0.5},
    "starcoder2": _NEW,
    "t5": _T5,
    "xlm-roberta": _NEW,
}


def config(model_type: str) -> PretrainedConfig:
    """The tiny config, without dropout."""
    from loratlas.modeling import zero_dropout
    from loratlas.models.quiet import quiet

    with quiet():
        result = CONFIG_MAPPING[model_type](**TYPES[model_type])
    zero_dropout(result)
    return result


def model(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A float32 model with random weights, of the class that the anatomy was read from."""
    import torch

    from loratlas.models.meta import model_class
    from loratlas.models.quiet import quiet

    chosen = model_class(config(model_type))
    assert chosen is not None
    kind, its_config = chosen
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = kind._from_config(its_config, dtype=torch.float32)
    return built.requires_grad_(False).eval()
