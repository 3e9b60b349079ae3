"""Regular expressions that match exactly the given module names, and stay readable.

Names that differ in numbers and leaves alone are written together:

>>> exact(["h.0.attn.c_attn", "h.1.attn.c_attn", "h.0.mlp.c_fc", "h.1.mlp.c_fc"])
'h\\\\.(?:0|1)\\\\.(?:attn\\\\.c_attn|mlp\\\\.c_fc)'
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

_NUMBERED = re.compile(r"(.*?\.)?(\d+)\.(.*)", re.DOTALL)


def exact(names: Iterable[str]) -> str:
    """An expression that ``re.fullmatch`` accepts for these names and no other.

    Args:
        names: at least one. Their order sets the order inside the expression and nothing else.

    Returns:
        Escaped alternatives, factored by the first number in the names (the layer).
    """
    plain: list[str] = []
    layers: dict[tuple[str, str], list[str]] = {}
    for name in dict.fromkeys(names):
        match = _NUMBERED.fullmatch(name)
        if match:
            layers.setdefault((match[1] or "", match[3]), []).append(match[2])
        else:
            plain.append(re.escape(name))
    # Leaves that stand in the same layers share one expression.
    leaves: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (prefix, leaf), numbers in layers.items():
        leaves.setdefault((prefix, tuple(numbers)), []).append(re.escape(leaf))
    for (prefix, numbers), rest in leaves.items():
        plain.append(rf"{re.escape(prefix)}{_any(numbers)}\.{_any(rest)}")
    return "|".join(plain)


def _any(alternatives: Collection[str]) -> str:
    return f"(?:{'|'.join(alternatives)})" if len(alternatives) > 1 else next(iter(alternatives))


def anchored(names: Iterable[str]) -> str:
    """:func:`exact` between ``^(?:`` and ``)$``.

    PEFT puts ``(.*\\.)?`` before the keys of rank_pattern and alpha_pattern, so that a bare name also matches every
    longer one that ends in it. ``^`` behind that prefix holds only where the prefix is empty.
    """
    return f"^(?:{exact(names)})$"


def default_and_patterns(values: Sequence[tuple[str, Any]]) -> tuple[Any, dict[str, Any]]:
    """The commonest value (of equally common ones the first), and anchored patterns for the names with others.

    >>> default_and_patterns([("a", 4), ("b", 4), ("c", 2)])
    (4, {'^(?:c)$': 2})
    """
    names: dict[Any, list[str]] = {}
    for name, value in values:
        names.setdefault(value, []).append(name)
    default = max(names, key=lambda value: len(names[value]))
    # One key per value: PEFT tries every key on every module, and Python caches 512 expressions.
    return default, {anchored(own): value for value, own in names.items() if value != default}
