"""Results as people see them: one description of tables and sentences, drawn as plain text or as HTML.

A result says once what it shows (`Displayed.blocks`); a terminal, a file and a notebook draw the same blocks.

>>> print(as_text([Grid(columns=("role", "sites"), rows=(("attn.q", "8"),)), "Unresolved: none."]))
 role     sites
────────────────
 attn.q       8
<BLANKLINE>
Unresolved: none.
"""

from __future__ import annotations

import html
import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loratlas.errors import printable, printable_lines

NUMERIC = frozenset("0123456789+-−–.,%×<>≤≥ ")
"""A column whose cells hold nothing else is set flush right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table as text.

    Args:
        columns: headings, "" for none.
        rows: cells, as many as columns in each.
        title: a line above; "" for none.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""

    def is_numeric(self, index: int) -> bool:
        """Whether a column holds numbers alone (a unit behind them allowed), and is set flush right."""
        cells = [row[index] for row in self.rows if row[index]]
        return bool(cells) and all(set(cell.split(" ")[0]) <= NUMERIC for cell in cells)


Block = Grid | str


class Displayed(ABC):
    """What a result needs to print well: subclasses give `blocks`."""

    __slots__ = ()

    @abstractmethod
    def blocks(self) -> Sequence[Block]:
        """Tables and sentences, in reading order."""

    def __str__(self) -> str:
        return as_text(self.blocks())

    def _repr_html_(self) -> str:
        return as_html(self.blocks())


def as_text(blocks: Sequence[Block], *, width: int = 80) -> str:
    """Blocks for a terminal, at most ``width`` characters wide, no trailing spaces.

    Args:
        blocks: see `Displayed.blocks`.
        width: in characters.
    """
    from rich.console import Console

    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, highlight=False, markup=False, emoji=False)
    for index, block in enumerate(blocks):
        if index and (isinstance(block, Grid) or isinstance(blocks[index - 1], Grid)):
            console.print()
        console.print(printable_lines(block) if isinstance(block, str) else drawn(block))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def drawn(grid: Grid) -> Any:
    """A grid as a table of rich."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=True, show_edge=False, title=grid.title or None)
    for index, heading in enumerate(grid.columns):
        right = grid.is_numeric(index)
        table.add_column(
            printable(heading), justify="right" if right else "left", no_wrap=right, overflow="fold"
        )
    for row in grid.rows:
        table.add_row(*(printable_lines(cell) for cell in row))
    return table


def as_html(blocks: Sequence[Block]) -> str:
    """Blocks for a notebook: tables and paragraphs, everything escaped, no style but alignment."""
    made = []
    for block in blocks:
        if isinstance(block, str):
            made.append(f"<p>{html.escape(printable_lines(block))}</p>")
            continue
        sides = ["right" if block.is_numeric(i) else "left" for i in range(len(block.columns))]
        caption = f"<caption>{html.escape(printable(block.title))}</caption>" if block.title else ""
        made.append(f"<table>{caption}<thead>{_row('th', block.columns, sides)}</thead><tbody>")
        made += [_row("td", row, sides) for row in block.rows]
        made.append("</tbody></table>")
    return "".join(made)


def _row(tag: str, cells: Sequence[str], sides: Sequence[str]) -> str:
    inner = (
        f'<{tag} style="text-align:{side}">{html.escape(printable_lines(cell))}</{tag}>'
        for cell, side in zip(cells, sides, strict=True)
    )
    return f"<tr>{''.join(inner)}</tr>"
