"""Which modules the fields of a LoraConfig name, by PEFT's rules: whole names, ends behind a dot, expressions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from loratlas.placement.module_names import endings, part_of

ALL_LINEAR = "all-linear"


def hit_by(entry: str, modules: Iterable[str]) -> list[str]:
    """The modules that an entry of a list names: itself, or as an end behind a dot.

    >>> hit_by("c_proj", ["h.0.attn.c_proj", "h.0.mlp.c_proj", "h.0.xc_proj"])
    ['h.0.attn.c_proj', 'h.0.mlp.c_proj']
    """
    return [name for name in modules if name == entry or name.endswith(f".{entry}")]


def hit_by_expression(expression: str, modules: Iterable[str]) -> list[str]:
    """The modules that a regular expression names: it has to match the whole name.

    Raises:
        re.error: it does not parse.
    """
    pattern = re.compile(expression)
    return [name for name in modules if pattern.fullmatch(name)]


def entries_of(value: Any) -> list[str]:
    """The entries of a list of names; none of an expression or of nothing.

    >>> entries_of(["q", "v"]), entries_of("q|v"), entries_of(None)
    (['q', 'v'], [], [])
    """
    return [str(entry) for entry in value] if isinstance(value, (list, tuple, set, frozenset)) else []


def nearest_names(entry: str, modules: list[str]) -> list[str]:
    """What the writer of a name that matches nothing may have meant: names that do match.

    A path that begins wrongly is given its right beginning; else the leaves that mean the same in other
    architectures come first, then those that are spelled alike.

    Args:
        entry: as written.
        modules: names of the modules that can be adapted.

    >>> nearest_names("query", ["layers.0.attn.q_proj", "layers.0.attn.k_proj"])
    ['q_proj']
    >>> nearest_names("base_model.model.layers.0.attn.q_proj", ["layers.0.attn.q_proj"])
    ['layers.0.attn.q_proj']
    """
    words = entry.split(".")
    for start in range(1, len(words) - 1):
        tail = ".".join(words[start:])
        if hits := hit_by(tail, modules):
            return hits[:1] if any(word.isdigit() for word in words) else [tail]
    leaves = [name for name in endings(modules) if "." not in name]
    part = part_of(entry)
    meant = [leaf for leaf in leaves if part_of(leaf) == part]
    if not meant and part in ("q", "k", "v"):
        meant = [leaf for leaf in leaves if part_of(leaf) in ("qkv", "kv", "query_key_value", "Wqkv")]
    return meant[:2] or get_close_matches(words[-1], leaves, n=2, cutoff=0.4) or leaves[:4]


def by_name(config: Mapping[str, Any], modules: list[str]) -> list[str]:
    """The modules that ``target_modules`` names, without the layers and names that other fields take away."""
    target = config.get("target_modules")
    if isinstance(target, str):
        if target == ALL_LINEAR:
            return list(modules)
        try:
            return hit_by_expression(target, modules)
        except re.error:
            return []
    return [name for name in modules if any(hit_by(entry, [name]) for entry in entries_of(target))]
