"""Trainable parameters that an arm's runs ended with: where adapters move, that is not what they were to end with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def ended_with(arm: str, about: Mapping[str, Any], records: Mapping[int, Mapping[str, Any]]) -> list[int]:
    """Trainable parameters of an arm's evaluation runs, in the order of its seeds.

    Args:
        arm: its name. about: what the ledger keeps about the whole study. records: seed → record of a finished run.

    Returns:
        One count for each run of an arm whose adapters move; the plan's alone for any other arm, and for one that
        has finished none.
    """
    counts = []
    if arm in about.get("moving", {}):
        counts = [record["trainable"] for record in records.values()]
    return counts or [about["trainable"][arm]]


def budget_match(
    match: Mapping[str, Any] | None, *, arm: Sequence[int], reference: Sequence[int]
) -> dict[str, Any] | None:
    """How many parameters an arm had against the reference, by what their runs ended with.

    Args:
        match: as it was planned, of `loratlas.study.inputs.match_budgets.BudgetMatch`; None where nothing is matched.
        arm, reference: what their runs ended with.

    Returns:
        The same with ``wanted``, ``got`` and ``relative`` of the largest run of each; step time and memory as planned.
    """
    if match is None or match["quantity"] != "params":
        return None if match is None else dict(match)
    wanted, got = max(reference), max(arm)
    return {**match, "wanted": wanted, "got": got, "relative": got / wanted - 1}


def spread_notes(arms: Mapping[str, Sequence[int]]) -> list[str]:
    """A sentence for each arm whose runs did not all end with as many parameters.

    >>> spread_notes({"a": [8, 8], "b": [1200, 1300]})
    ['b: its runs ended with 1,200 to 1,300 trainable parameters; the most is what is printed and compared.']
    """
    return [
        f"{name}: its runs ended with {min(counts):,} to {max(counts):,} trainable parameters; "
        "the most is what is printed and compared."
        for name, counts in arms.items()
        if len(set(counts)) > 1
    ]
