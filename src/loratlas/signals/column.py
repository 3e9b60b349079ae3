"""What a column of scores is called and how it is to be read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One number per site.

    Args:
        name: what it is called in tables and JSON.
        unit: in words.
        pays: ``"high"`` where a high value says that an adapter helps there, ``"low"`` where a low one does.
        adam: what the number has to do with Adam, in words.
    """

    name: str
    unit: str
    pays: str
    adam: str

    def worth(self, value: float) -> float:
        """The value with its sign turned so that more is better."""
        return value if self.pays == "high" else -value
