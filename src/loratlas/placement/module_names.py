"""Names of modules as people write them: whole, by a pattern, or by their end, as PEFT's target_modules does.

>>> glob("model.*.q_proj")("model.layers.3.self_attn.q_proj"), ends("attn.c_proj")("h.0.attn.c_proj")
(True, True)
>>> ends("c_proj")("h.0.mlp.xc_proj")
False
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

# What a name that people know from one architecture is called in the language.
_PARTS = {
    "query": "q", "key": "k", "value": "v", "out": "o", "output": "o", "dense": "o", "wq": "q", "wk": "k", "wv": "v",
    "wo": "o", "query_key_value": "qkv", "c_attn": "qkv", "wqkv": "qkv", "in": "qkv", "key_value": "kv", "fc": "up",
    "c_fc": "up", "fc1": "up", "fc_in": "up", "fc2": "down", "fc_out": "down", "w1": "gate", "w2": "down", "w3": "up",
    "wi": "up", "wi_0": "gate", "wi_1": "up", "dense_h_to_4h": "up", "dense_4h_to_h": "down", "lm_head": "head.lm",
    "embed_tokens": "embed", "wte": "embed", "in_proj": "in", "out_proj": "o", "c_proj": "o",
}  # fmt: skip


def part_of(word: str) -> str:
    """What a module name most likely means in the language, for suggestions; the name itself where nobody knows.

    >>> part_of("q_proj"), part_of("self_attn.query"), part_of("gate_up_proj"), part_of("c_attn")
    ('q', 'q', 'gate_up', 'qkv')
    """
    leaf = word.removesuffix(".weight").rpartition(".")[2].lower()
    plain = re.sub(r"_(?:proj|lin|linear|layer)$", "", leaf)
    return _PARTS.get(leaf) or _PARTS.get(plain, plain)


def ends(suffix: str) -> Callable[[str], bool]:
    """Whether a name is this one, or ends with it behind a dot."""
    dotted = f".{suffix}"
    return lambda name: name == suffix or name.endswith(dotted)


def glob(pattern: str) -> Callable[[str], bool]:
    """Whether a whole name fits a pattern: ``*`` any characters, dots included, ``?`` one.

    Greedy with one point to return to, so that the time is at most pattern × name, whatever the pattern; a regular
    expression made of many stars takes time that is exponential in them.

    >>> glob("********x")("a" * 1000), glob("a?c*")("abcd"), glob("a.b")("aXb")
    (False, True, False)
    """
    pattern = re.sub(r"\*+", "*", pattern)
    if "*" not in pattern and "?" not in pattern:
        return lambda name: name == pattern
    least = len(pattern) - pattern.count("*")

    def fits(name: str) -> bool:
        if least > len(name):
            return False
        i = j = 0
        star, mark = -1, 0
        while j < len(name):
            if i < len(pattern) and pattern[i] == "*":
                star, mark = i, j
                i += 1
            elif i < len(pattern) and pattern[i] in ("?", name[j]):
                i, j = i + 1, j + 1
            elif star >= 0:
                mark += 1
                i, j = star + 1, mark
            else:
                return False
        return all(c == "*" for c in pattern[i:])

    return fits


def shapes_of(names: Iterable[str]) -> dict[str, str]:
    """Names that differ in their numbers alone, once: the name with ``*`` for numbers → the first such name.

    >>> shapes_of(["h.0.q", "h.1.q", "h.0.k"])
    {'h.*.q': 'h.0.q', 'h.*.k': 'h.0.k'}
    """
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(_starred(name), name)
    return first


def _starred(name: str) -> str:
    return re.sub(r"(?<![^.])[0-9]+(?![^.])", "*", name)


def endings(names: Iterable[str]) -> Iterator[str]:
    """The ends of these names, the last word first: ``q_proj``, then ``self_attn.q_proj``; no number, each once."""
    seen: set[str] = set()
    for name in names:
        words = name.split(".")
        for count in (1, 2):
            ending = ".".join(words[-count:])
            if ending not in seen and not any(word.isdigit() for word in words[-count:]):
                seen.add(ending)
                yield ending
