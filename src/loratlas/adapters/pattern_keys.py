"""Which entry of ``rank_pattern`` or ``alpha_pattern`` a module gets, as PEFT decides it, without importing PEFT."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def pattern_key(patterns: Mapping[str, Any], name: str) -> str | None:
    """The first key that PEFT takes for a module; None where no key matches.

    A key is an expression that has to match the whole name, or its end behind a dot.

    Args:
        patterns: ``rank_pattern`` or ``alpha_pattern``.
        name: of the module in the bare model; of a parameter, where the parameter is adapted.

    >>> pattern_key({"k_proj": 1, "^layers.0.q_proj": 2}, "layers.0.k_proj")
    'k_proj'
    >>> pattern_key({"k_proj": 1}, "layers.0.mk_proj") is None
    True
    """
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", name)), None)


def pattern_value(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """What a module's entry says, or the default.

    >>> pattern_value({"q_proj": 4}, "layers.0.q_proj", 8), pattern_value(None, "layers.0.q_proj", 8)
    (4, 8)
    """
    key = pattern_key(patterns or {}, name)
    return default if key is None else (patterns or {})[key]
