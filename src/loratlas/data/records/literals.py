"""JSON in which numbers keep their digits: ``1.10`` stays ``1.10``, ``1e5`` stays ``1e5``."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a character: JSON can spell it (``\\ud83d``), UTF-8 cannot, and no tokenizer takes it."""


class Literal(str):
    """A number of JSON, as the digits that were written."""

    __slots__ = ()


_HOOKS: dict[str, Any] = {"parse_float": Literal, "parse_int": Literal, "parse_constant": Literal}
DECODER = json.JSONDecoder(**_HOOKS)
"""Reads JSON with every number as a `Literal`."""


class DoubledObject(dict[str, Any]):
    """An object that names keys twice; which of their values is meant, nobody knows.

    Attributes:
        doubled: those keys.
    """

    __slots__ = ("doubled",)

    doubled: tuple[str, ...]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        record = DoubledObject(record)
        record.doubled = tuple(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)
    return record


STRICT = json.JSONDecoder(object_pairs_hook=_once, **_HOOKS)
"""As `DECODER`, and an object that names a key twice is a `DoubledObject`."""


def doubled_key(record: Mapping[str, Any], columns: Collection[str]) -> str | None:
    """A key that stands twice in what is read of a record; None where there is none.

    Args:
        record: of `STRICT`.
        columns: that are read.

    >>> record = STRICT.decode('{"text": "a", "meta": {"x": 1, "x": 2}, "y": 1, "y": 2}')
    >>> doubled_key(record, ["text"]), doubled_key(record, ["text", "meta"]), doubled_key(record, ["y"])
    (None, 'x', 'y')
    """
    for key in record.doubled if isinstance(record, DoubledObject) else ():
        if key in columns:
            return key
    return next((key for name in columns if (key := _inner(record.get(name))) is not None), None)


def _inner(value: Any) -> str | None:
    if isinstance(value, DoubledObject):
        return value.doubled[0]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((key for item in inside if (key := _inner(item)) is not None), None)


def scalar_text(value: Any) -> str | None:
    """A text, a number or a truth value as it is written in JSON; None for all else.

    >>> [scalar_text(value) for value in DECODER.decode('["a", 1.10, true, [1], null]')]
    ['a', '1.10', 'true', None, None]
    """
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return None


def plain(value: Any) -> Any:
    """Literals become numbers, at any depth: what a chat template is given.

    >>> plain(DECODER.decode('{"days": 2, "at": [1.50]}'))
    {'days': 2, 'at': [1.5]}
    """
    if isinstance(value, Literal):
        try:
            return json.loads(value)
        except ValueError:  # thousands of digits
            return str(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def has_surrogate(value: Any) -> bool:
    """Whether half a character stands in a text, at any depth."""
    if isinstance(value, str):
        return SURROGATE.search(value) is not None
    if isinstance(value, Mapping):
        return any(has_surrogate(key) or has_surrogate(item) for key, item in value.items())
    return isinstance(value, list) and any(has_surrogate(item) for item in value)
