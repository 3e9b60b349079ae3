"""The words of the placement language that name matrices, and what each holds.

A word means the same on every model. Whether a model has such a matrix is the resolver's business.

>>> holds("feedforward", "ffn.down"), holds("attention", "attn.relbias"), holds("q", "xattn.q")
(True, False, True)
"""

from __future__ import annotations

SCOPES = ("decoder", "encoder", "vision", "audio", "connector")
"""Towers. Without a scope, a word means the text towers alone: decoder and encoder."""

SETS = ("all", "attention", "feedforward")
ALIASES = {"full": "all", "mlp": "feedforward"}
"""Other spellings of the sets; the canonical text never holds one."""

FAMILIES = (
    "attn", "xattn", "ffn", "shared", "moe", "router", "shared_gate", "mixer", "residual", "adapter", "embed",
    "head", "proj", "conv", "vector",
)  # fmt: skip

_ATTENTION = (
    "q", "k", "v", "o", "qkv", "kv", "qk", "q_a", "q_b", "kv_a", "kv_b", "o_a", "o_b", "gate", "rel", "index",
    "relbias", "adapter",
)  # fmt: skip
_FEEDFORWARD = ("gate", "up", "gate_up", "down")
_ADAPTED = (*_FEEDFORWARD, "adapter")  # Zamba2 carries adapters of its own beside its tied feed-forwards.
_MIXER = ("in", "q", "k", "v", "qkv", "gate", "decay", "beta", "x", "dt", "out")

PARTS_OF: dict[str, tuple[str, ...]] = {
    "attn": _ATTENTION,
    "xattn": _ATTENTION,
    "ffn": _ADAPTED,
    "shared": _FEEDFORWARD,
    "moe": _FEEDFORWARD,
    "mixer": _MIXER,
    "head": ("lm", "transform", "cls"),
}
PARTS = tuple(dict.fromkeys(part for parts in PARTS_OF.values() for part in parts))

_NOT_IN_ATTENTION = frozenset({"rel", "index", "relbias", "adapter"})
_NOT_IN_FEEDFORWARD = frozenset({"adapter"})
_NOT_IN_ALL = frozenset({"decay", "beta", "dt", "x"})

MADE_OF = {
    "q": ("qkv", "qk", "q_a", "q_b"),
    "k": ("qkv", "kv", "qk", "kv_a", "kv_b"),
    "v": ("qkv", "kv", "kv_a", "kv_b"),
    "kv": ("qkv", "k", "v", "kv_a", "kv_b"),
    "qk": ("qkv", "q", "k"),
    "qkv": ("q", "k", "v", "kv", "qk"),
    "gate": ("gate_up",),
    "up": ("gate_up",),
    "gate_up": ("gate", "up"),
    "o": ("o_a", "o_b", "out"),
}
"""Part → parts that hold it, or that it holds, on models which fuse or split differently."""


def in_set(name: str, role: str) -> bool:
    """Whether a set holds a role.

    Args:
        name: ``all``, ``attention`` or ``feedforward``.
        role: ``family.part``.
    """
    family, _, part = role.partition(".")
    if name == "attention":
        return family in ("attn", "xattn") and part not in _NOT_IN_ATTENTION
    if name == "feedforward":
        return family in ("ffn", "shared", "moe") and part not in _NOT_IN_FEEDFORWARD
    mixer = family == "mixer" and part not in _NOT_IN_ALL
    return mixer or in_set("attention", role) or in_set("feedforward", role)


def holds(word: str, role: str) -> bool:
    """Whether a word, with or without a part behind a dot, holds a role.

    Args:
        word: a set, a family, a part, or a set or family with ``.part`` behind it.
        role: ``family.part``, or a family that has no parts.
    """
    first, _, wanted = word.partition(".")
    family, _, part = role.partition(".")
    if wanted and part != wanted:
        return False
    if first in SETS:
        return in_set(first, role)
    if first in FAMILIES:
        return family == first
    return part == first
