"""A claim, its verdict and the tables behind it, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

HOLDS, FAILS, UNMEASURED = "holds", "does not hold", "not measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimTable:
    """Numbers behind a verdict: a heading, column names, rows of cells as they print."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimVerdict:
    """A claim and what became of it.

    Args:
        number: 1 to 8.
        claim: in words.
        verdict: `holds`, `does not hold`, `holds only when …` or `not measured`.
        because: sentences with the numbers that decide.
        confound: what made the published figure, and the arm that shows it; empty where nothing is known to.
        tables: the evidence.
    """

    number: int
    claim: str
    verdict: str
    because: tuple[str, ...]
    confound: str = ""
    tables: tuple[ClaimTable, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "claim": self.claim,
            "verdict": self.verdict,
            "because": list(self.because),
            "confound": self.confound,
            "evidence": [
                {
                    "title": table.title,
                    "rows": [dict(zip(table.columns, row, strict=True)) for row in table.rows],
                }
                for table in self.tables
            ],
        }
