"""How figures are written in the pages' tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def interval(figure: Mapping[str, Any], form: str) -> str:
    """A value and its interval; "–" where there is none.

    >>> interval({"value": 0.1, "low": 0.05, "high": None}, ".0%")
    '10 % (5 % to –)'
    """
    if figure["value"] is None:
        return "–"
    return f"{cell(figure['value'], form)} ({cell(figure['low'], form)} to {cell(figure['high'], form)})"


def cell(value: float | None, form: str) -> str:
    """A number, "–" for none.

    >>> cell(0.5, ".0%"), cell(None, ".0%")
    ('50 %', '–')
    """
    return "–" if value is None else format(value, form).replace("%", " %")


def steps(figure: Mapping[str, Any], most: float, least: float) -> str:
    """Steps saved; ends at which the curve of the reference ends are bounds and no values.

    Args:
        figure: ``value``, ``low`` and ``high``. most, least: what the curve can say.

    >>> steps({"value": 12.2, "low": -30, "high": 30}, most=30, least=-30)
    '+12 (≤ -30 to ≥ +30)'
    """

    def said(value: float) -> str:
        bound = "≥ " if value >= most - 0.5 else "≤ " if value <= least + 0.5 else ""
        return f"{bound}{value:+.0f}"

    value, low, high = (said(figure[name]) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
