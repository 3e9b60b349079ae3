"""What neither reader can settle, looked up in the models' code by hand. As short as it can be.

Every entry: the model type, a pattern that the whole parameter name must match, the role, and the reason.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple


class Override(NamedTuple):
    """One settled question."""

    model_type: str
    pattern: str
    role: str
    reason: str


OVERRIDES: tuple[Override, ...] = (
    Override(
        "longcat_flash",
        r"model\.layers\.\d+\.mlps\.\d\.(gate|up|down)_proj\.weight",
        r"ffn.\1",
        "the first of two dense feed-forwards reads what the router reads, like a shared expert, but its "
        "result goes on to the second attention: it is the model's own feed-forward",
    ),
    Override(
        "xmod",
        r"roberta\.encoder\.layer\.\d+\.output\.adapter_modules\.\w+\.dense[12]\.weight",
        "adapter",
        "an adapter per language is a small feed-forward on the stream; its width does not distinguish it",
    ),
    Override(
        "axk2",
        r"model\.layers\.\d+\.self_attn\.q_gate_proj\.weight",
        "attn.q_b",
        "queries fused with the output gate, expanded from the compressed queries",
    ),
    Override(
        "big_bird",
        r"bert\.encoder\.layer\.\d+\.attention\.(?:self\.(?P<p>q|k|v)\w+|output\.dense)\.weight",
        "attn.",
        "block-sparse attention gathers unlike numbers of queries and keys from one stream",
    ),
    Override(
        "yoso",
        r"yoso\.encoder\.layer\.\d+\.attention\.(?:self\.(?P<p>q|k|v)\w+|output\.dense)\.weight",
        "attn.",
        "attention by hashing: an estimate of softmax attention without a softmax",
    ),
    *(
        Override(
            model_type,
            r"model\.layers\.\d+\.self_attn\.rel_logits_proj\.proj",
            "attn.rel",
            "maps what r_proj made of a token to a bias for every distance: added to the scores, gathered by "
            "distance and not by a product",
        )
        for model_type in ("inkling_text", "inkling2_text")
    ),
    Override(
        "mra",
        r"mra\.encoder\.layer\.\d+\.attention\.(?:self\.(?P<p>q|k|v)\w+|output\.dense)\.weight",
        "attn.",
        "attention at several resolutions, normalised by hand and not by a softmax",
    ),
    Override(
        "funnel",
        r"funnel\.encoder\.blocks\.\d+\.\d+\.attention\.(?P<p>q|k|v)_head\.weight",
        "attn.",
        "the first layer of a block attends from pooled tokens to all tokens of the same stream",
    ),
    Override(
        "funnel",
        r"funnel\.encoder\.blocks\.\d+\.\d+\.attention\.post_proj\.weight",
        "attn.o",
        "the first layer of a block attends from pooled tokens to all tokens of the same stream",
    ),
    Override(
        "funnel",
        r"funnel\.encoder\.blocks\.\d+\.\d+\.attention\.r_kernel",
        "attn.rel",
        "its positions are those of an attention from pooled tokens to all tokens of the same stream",
    ),
    Override(
        "fsmt",
        r"model\.decoder\.output_projection\.weight",
        "head.lm",
        "maps to the target vocabulary inside the decoder, under a size that the config calls otherwise",
    ),
    Override(
        "zaya",
        r"model\.layers\.\d+\.self_attn\.qkv_proj\.(?P<p>q|k|v)_proj(?:_current|_delayed)?\.weight",
        "attn.",
        "queries and keys pass two convolutions before they meet, values come from this and the last token",
    ),
    Override(
        "deepseek_v4",
        r"model\.layers\.\d+\.self_attn\.(?:compressor\.)?(?P<p>q_a|q_b|kv|o_a|o_b)_proj\.weight",
        "attn.",
        "one matrix makes keys and values at once, and windows of them are averaged before they are attended to",
    ),
    Override(
        "deepseek_v4",
        r"model\.layers\.\d+\.self_attn\.compressor\.gate_proj\.weight",
        "attn.gate",
        "its output, under a softmax over the tokens of a window, weighs their keys and values channel by channel: "
        "it multiplies elementwise and is compared with nothing, so it is neither a query nor an index",
    ),
    Override(
        "doge",
        r"model\.layers\.\d+\.self_attn\.dt_proj\.weight",
        "attn.index",
        "scores every key by its value; beyond a window of keys the best are kept, the rest is masked",
    ),
    *(
        Override(
            "doge",
            rf"model\.layers\.\d+\.mlp\.{leaf}\.weight",
            role,
            "tables of experts one neuron wide: a chosen row of the one reads the stream, that of the other writes it",
        )
        for leaf, role in (("down_embed", "moe.up"), ("up_embed", "moe.down"))
    ),
    *(
        Override(
            "rwkv",
            rf"rwkv\.blocks\.\d+\.attention\.{leaf}\.weight",
            f"mixer.{part}",
            "a recurrence written as a loop over tokens, element by element: there is no product to see",
        )
        for leaf, part in (("key", "k"), ("value", "v"), ("receptance", "gate"), ("output", "out"))
    ),
    *(
        Override(
            "rwkv",
            rf"rwkv\.blocks\.\d+\.feed_forward\.{leaf}\.weight",
            f"ffn.{part}",
            "reads a blend of this token and the last one: tokens are mixed in front of it, not by it",
        )
        for leaf, part in (("key", "up"), ("receptance", "gate"), ("value", "down"))
    ),
    Override(
        "zamba",
        r"model\.layers\.\d+\.shared_transf\.feed_forward\.(gate|up|down)_proj\.weight",
        r"ffn.\1",
        "no stream passes its attention by: it reads nothing but the result, as an output projection would",
    ),
    Override(
        "zamba2",
        r"model\.layers\.\d+\.shared_transformer\.feed_forward\.(gate_up|down)_proj\.weight",
        r"ffn.\1",
        "no stream passes its attention by: it reads nothing but the result, as an output projection would",
    ),
    Override(
        "jetmoe",
        r"model\.layers\.\d+\.self_attention\.experts\.router\.layer\.weight",
        "router",
        "chooses experts for each token alone, in the middle of an attention that mixes tokens",
    ),
    Override(
        "zaya",
        r"model\.layers\.\d+\.self_attn\.o_proj\.weight",
        "attn.o",
        "reads what attention over queries and keys behind two convolutions gives",
    ),
)


@lru_cache(maxsize=256)
def _for(model_type: str) -> tuple[tuple[re.Pattern[str], Override], ...]:
    return tuple((re.compile(one.pattern), one) for one in OVERRIDES if one.model_type == model_type)


def settled(model_type: str, path: str) -> str | None:
    """The role that the table gives this parameter, if it has an entry."""
    for pattern, entry in _for(model_type):
        match = pattern.fullmatch(path)
        if match is not None:
            role = entry.role
            # A role that ends in a dot is completed by the part that the name spells; without one it is the output.
            return role + (match["p"] or "o") if role.endswith(".") else match.expand(role)
    return None


def reason(model_type: str, path: str) -> str:
    """Why the table says what it says about this parameter; empty where it says nothing."""
    return next((entry.reason for pattern, entry in _for(model_type) if pattern.fullmatch(path)), "")
