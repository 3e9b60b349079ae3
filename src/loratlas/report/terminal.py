"""The facts of the page in a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from loratlas.report import facts, tables
from loratlas.report.ledger import plain

if TYPE_CHECKING:
    from rich.table import Table

_COLOURS = {"better": "green", "worse": "red", "equivalent": "blue", "undetermined": "yellow"}


def answer(study: Mapping[str, Any]) -> str:
    """The study in one sentence, as the page begins."""
    return plain(facts.answer(facts.read(study)))


def table(study: Mapping[str, Any]) -> Table:
    """Arms with placement, learning rate, loss, difference and verdict, for ``rich.print``.

    Names are put in as they are: square brackets in them are no markup.

    Args:
        study: the JSON object of schema ``loratlas.study``.
    """
    from rich.table import Table
    from rich.text import Text

    content = tables.summary(facts.read(study))
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in content.columns:
        made.add_column(Text(column), overflow="fold", no_wrap=column in ("LR", "Verdict"))
    for row in content.rows:
        words = [plain(phrase) for phrase in row]
        made.add_row(*(Text(word, style=_COLOURS.get(word, "")) for word in words))
    return made
