"""One fault of a config, in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class LintFinding:
    """One fault.

    Args:
        rule: its name, such as ``no-match`` or ``collision``.
        where: the field of the config, or the tensor.
        given: what is written there.
        found: what it does.
        instead: what to write.
    """

    rule: str
    where: str
    given: str
    found: str
    instead: str

    def to_json(self) -> dict[str, Any]:
        """As ``loratlas lint --json`` prints it."""
        return asdict(self)


def some_names(names: list[str], limit: int = 3) -> str:
    """A few names, and how many more there are.

    >>> some_names(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
