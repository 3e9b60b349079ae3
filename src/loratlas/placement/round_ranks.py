"""Ranks rounded down to few distinct numbers, so that a solved budget makes a short LoraConfig.

>>> [rounded_rank(rank) for rank in (1, 5, 7, 11, 13, 31, 100)]
[1, 4, 6, 8, 12, 24, 96]
"""

from __future__ import annotations

from dataclasses import replace

from loratlas.anatomy.sites import Anatomy
from loratlas.placement.canonical import table_text
from loratlas.placement.plan import Plan


def rounded_rank(rank: int) -> int:
    """The largest of 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, … that is not above a rank."""
    power = 1 << (rank.bit_length() - 1)
    return power + power // 2 if rank >= power + power // 2 and power > 1 else power


def round_ranks(plan: Plan, anatomy: Anatomy) -> Plan:
    """The same sites with rounded ranks; never more parameters than before.

    Args:
        plan: as solved.
        anatomy: of its model.

    Returns:
        A plan whose α keeps the scale where it was twice the rank, and its value where it was given.
    """
    rows = []
    for row in plan.rows:
        rank = rounded_rank(row.rank)
        rows.append(replace(row, rank=rank, alpha=2.0 * rank if row.alpha == 2 * row.rank else row.alpha))
    text = table_text(anatomy, {row.site.path: row.rank for row in rows})
    return replace(plan, rows=tuple(rows), text=text, placement=text)
