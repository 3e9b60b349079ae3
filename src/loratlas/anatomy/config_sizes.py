"""The sizes that shapes are checked against, read from a config under whatever name it keeps them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Keys of a config that say nothing about what the model is made of.
_VOLATILE = frozenset(
    {
        "_name_or_path",
        "_attn_implementation",
        "_attn_implementation_internal",
        "_commit_hash",
        "_experts_implementation",
        "_experts_implementation_internal",
        "architectures",
        "attn_implementation",
        "dtype",
        "id2label",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "quantization_config",
        "return_dict",
        "task_specific_params",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)


_ACTIVE = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "top_k_experts",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "num_selected_experts",
    "experts_per_token",
)  # fmt: skip


# Types whose config names no such number and whose code sends a token to more than one expert.
_ACTIVE_BY_TYPE = {"nllb-moe": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a config says about widths.

    Args:
        hidden: width of the residual stream.
        layers: number of blocks.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: width of one head.
        context: positions the model was built for; None where it has no such limit.
        active_experts: routed experts that one token passes; 1 where the config names no number.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int | None
    active_experts: int = 1


def sizes(config: PretrainedConfig) -> Sizes:
    """Read the sizes of a decoder; a size the config does not have is 0, which no matrix matches."""
    config = config.get_text_config(decoder=True)
    hidden = _first(config, "hidden_size", "n_embd", "d_model") or 0
    heads = _first(config, "num_attention_heads", "n_head", "n_heads", "num_heads") or 0
    kv_heads = _first(config, "num_key_value_heads", "num_kv_heads") or heads
    # Falcon ignores num_kv_heads before its new architecture: then it is one head or all of them.
    if hasattr(config, "multi_query") and not getattr(config, "new_decoder_architecture", False):
        kv_heads = 1 if config.multi_query else heads
    head_dim = _first(config, "head_dim") or (hidden // heads if heads else 0)
    return Sizes(
        hidden=hidden,
        layers=_first(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers") or 0,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        context=_first(config, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
        active_experts=_first(config, *_ACTIVE)
        or _first(getattr(config, "ffn_config", None), *_ACTIVE)
        or _ACTIVE_BY_TYPE.get(config.model_type, 1),
    )


def config_digest(config: PretrainedConfig) -> str:
    """Name the architecture and its sizes in 16 hexadecimal digits.

    The sha256 of the config as canonical JSON, without what does not change the model's matrices or its
    function: labels, caches, names, the type weights happen to be stored in. Dropout is left out as well, for
    it is set to 0 when a base is loaded.
    """
    text = json.dumps(_stable(config.to_dict()), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            str(key): _stable(inner)
            for key, inner in value.items()
            if str(key) not in _VOLATILE and "drop" not in str(key).lower()
        }
    if isinstance(value, (list, tuple)):
        return [_stable(inner) for inner in value]
    return value


def _first(config: Any, *names: str) -> int | None:
    for name in names:
        try:
            value = getattr(config, name, None)
        except Exception:
            # A size that differs by layer refuses to be read as one number: no matrix is to match it.
            return None
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None
