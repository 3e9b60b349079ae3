"""Small configs of every supported type, with sizes that differ wherever a mistake could hide."""

from __future__ import annotations

from dataclasses import replace

from transformers import CONFIG_MAPPING, PretrainedConfig

from loratlas.anatomy import structure

_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": 101}
_MODERN = {
    "num_hidden_layers": 3,
    "hidden_size": 48,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
} | _IDS
_OLD = {"n_layer": 3, "n_embd": 48, "n_head": 4, "n_positions": 64} | _IDS

# Name of the case → (model type, config).
CASES: dict[str, tuple[str, dict]] = {
    "gpt2": ("gpt2", _OLD),
    "gpt_bigcode": ("gpt_bigcode", _OLD),
    "gpt_bigcode-multihead": ("gpt_bigcode", _OLD | {"multi_query": False}),
    "llama": ("llama", _MODERN | {"head_dim": 12}),
    "mistral": ("mistral", _MODERN | {"head_dim": 12}),
    "qwen2": ("qwen2", _MODERN),
    "qwen3": ("qwen3", _MODERN | {"head_dim": 12}),
    "gemma": ("gemma", _MODERN | {"head_dim": 12}),
    "gemma2": ("gemma2", _MODERN | {"head_dim": 12}),
    "gemma3_text": ("gemma3_text", _MODERN | {"head_dim": 12}),
    "phi": ("phi", _MODERN),
    "phi3": ("phi3", _MODERN),
    "stablelm": ("stablelm", _MODERN),
    "stablelm-parallel": ("stablelm", _MODERN | {"use_parallel_residual": True}),
    "olmo": ("olmo", _MODERN | {"clip_qkv": 4.0}),
    "starcoder2": ("starcoder2", _MODERN),
    "cohere": ("cohere", _MODERN | {"use_qk_norm": True}),
    "opt": (
        "opt",
        {
            "num_hidden_layers": 3,
            "hidden_size": 48,
            "num_attention_heads": 4,
            "ffn_dim": 80,
            "word_embed_proj_dim": 24,
            "max_position_embeddings": 64,
        }
        | _IDS,
    ),
    "gpt_neox": (
        "gpt_neox",
        {"num_hidden_layers": 3, "hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 80} | _IDS,
    ),
    "gptj": ("gptj", _OLD | {"rotary_dim": 4}),
    "gpt_neo": (
        "gpt_neo",
        {
            "num_layers": 4,
            "attention_types": [[["global", "local"], 2]],
            "hidden_size": 48,
            "num_heads": 4,
            "intermediate_size": 80,
            "max_position_embeddings": 64,
        }
        | _IDS,
    ),
    "falcon": ("falcon", {"num_hidden_layers": 3, "hidden_size": 48, "num_attention_heads": 4} | _IDS),
    "falcon-multihead": (
        "falcon",
        {
            "num_hidden_layers": 3,
            "hidden_size": 48,
            "num_attention_heads": 4,
            "multi_query": False,
            "parallel_attn": False,
            "alibi": True,
        }
        | _IDS,
    ),
    "falcon-groups": (
        "falcon",
        {
            "num_hidden_layers": 3,
            "hidden_size": 48,
            "num_attention_heads": 6,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
        }
        | _IDS,
    ),
    "bloom": ("bloom", {"n_layer": 3, "hidden_size": 48, "n_head": 4} | _IDS),
    "mpt": ("mpt", {"n_layers": 3, "d_model": 48, "n_heads": 4} | _IDS),
}


def build(case: str, **changes) -> PretrainedConfig:
    """The config of a case."""
    model_type, options = CASES[case]
    return CONFIG_MAPPING[model_type](**(options | changes))


_matrices = structure.matrices


def nameless(model):
    """The matrices of a model, every attribute and class around them called alike."""
    return [
        replace(matrix, leaf="x", trail=((("x",), ("x",)),) * len(matrix.trail), held=("x",))
        for matrix in _matrices(model)
    ]
