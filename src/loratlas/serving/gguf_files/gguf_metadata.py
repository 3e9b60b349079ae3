"""What a GGUF file says of a base beside its tensors: sizes, rotation, attention; and what llama.cpp takes for granted.

Whatever a config asks for that llama.cpp computes in another way is refused: a file that loads and answers differently
is worse than none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from loratlas.errors import ModelError
from loratlas.serving.gguf_files.gguf_names import GgufType

_SWA_EVERY = {"gemma2": 2, "gemma3": 6}
"""llama.cpp's period of layers: the last one of each sees the whole context, the others a window."""


def write_metadata(writer: Any, config: Any, kind: GgufType) -> None:
    """Write the keys of an architecture.

    Args:
        writer: of the gguf package.
        config: of the base.
        kind: its architecture.

    Raises:
        ModelError: the config asks for something that llama.cpp does otherwise.
    """
    for problem in _problems(config, kind):
        raise ModelError(
            given=f"a base of type {config.model_type!r}",
            found=f"{problem}, which llama.cpp's {kind.arch} does otherwise",
            instead="--for merged, and llama.cpp's own converter on that folder",
        )
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if kind.arch == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    width = head_width(config)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(rotation(config)["rope_theta"]))
    if kind.arch in _SWA_EVERY:
        writer.add_sliding_window(config.sliding_window)
    for field, write in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
    ):
        if getattr(config, field, None):
            write(float(getattr(config, field)))
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        if kind.arch == "qwen3moe":
            writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def head_width(config: Any) -> int:
    """Width of one head of attention."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def rotation(config: Any) -> dict[str, Any]:
    """``rope_parameters``; of the layers that see everything, where layers differ."""
    table = getattr(config, "rope_parameters", None) or {}
    return dict(table.get("full_attention", table))


def _problems(config: Any, kind: GgufType) -> Iterator[str]:
    if kind.arch == "gpt2":
        if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
            yield "attention scaled in an unusual way"
        if config.activation_function not in ("gelu_new", "gelu_pytorch_tanh"):
            yield f"the activation {config.activation_function}"
        return
    turned = rotation(config)
    if turned.get("rope_type", "default") not in ("default", *(("llama3",) if kind.arch == "llama" else ())):
        yield f"a rotation of type {turned.get('rope_type')}"
    if "rope_theta" not in turned:
        yield "a rotation without a base frequency"
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation not in (("gelu_pytorch_tanh", "gelu") if kind.unit_norms else ("silu", "swish")):
        yield f"the activation {activation}"
    if getattr(config, "mlp_bias", False):
        yield "biases in the feed-forward part"
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    window = getattr(config, "sliding_window", None)
    if (
        kind.arch in ("llama", "qwen2", "qwen3", "qwen3moe")
        and "sliding_attention" in kinds
        and window
        and window < config.max_position_embeddings
    ):
        yield f"a window of {window} tokens"
    yield from _gemma_problems(config, kind)
    if kind.arch == "qwen3moe":
        if not config.norm_topk_prob:
            yield "weights of experts that are not normalised"
        if config.mlp_only_layers or config.decoder_sparse_step != 1:
            yield "dense layers among those with experts"


def _gemma_problems(config: Any, kind: GgufType) -> Iterator[str]:
    if kind.arch not in _SWA_EVERY:
        return
    if config.query_pre_attn_scalar != head_width(config):
        yield f"query_pre_attn_scalar {config.query_pre_attn_scalar} for heads of {head_width(config)}"
    every = _SWA_EVERY[kind.arch]
    wanted = [
        "full_attention" if (layer + 1) % every == 0 else "sliding_attention"
        for layer in range(config.num_hidden_layers)
    ]
    if list(config.layer_types) != wanted:
        yield "another order of layers with a window"
    local = (config.rope_parameters or {}).get("sliding_attention") or {}
    if kind.arch == "gemma3" and (local.get("rope_theta"), local.get("rope_type", "default")) != (
        10000.0,
        "default",
    ):
        yield "another rotation of layers with a window"
    if getattr(config, "use_bidirectional_attention", False):
        yield "attention to later tokens"
