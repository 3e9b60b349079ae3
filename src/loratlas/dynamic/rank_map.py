"""Ranks of a model's sites as a small map for a terminal: roles down, layers across, a character for each site."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from loratlas.anatomy.sites import Site

LETTERS = "abcdefghijklmnopqrstuvwxyz"
UP, DOWN = "▴", "▾"
EDGE = 2
"""Spaces before a line."""


class Cell(NamedTuple):
    """A site, or several layers of one role.

    Args:
        text: what stands there.
        more, fewer: whether ranks were added, and taken.
        none: whether there is no adapter.
    """

    text: str
    more: bool
    fewer: bool
    none: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMap:
    """Ranks after a decision, with what it changed.

    Args:
        heading: what the characters mean.
        scale: numbers of layers, above the cells.
        rows: (role, its cells) in the model's order.
    """

    heading: str
    scale: str
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]

    @property
    def label(self) -> int:
        """Columns in front of a row's cells."""
        return EDGE + max(len(name) for name, _ in self.rows) + 2

    def lines(self) -> Iterator[str]:
        """As plain text."""
        yield " " * EDGE + self.heading
        yield (" " * self.label + self.scale).rstrip()
        for name, cells in self.rows:
            yield (f"{' ' * EDGE}{name}".ljust(self.label) + "".join(cell.text for cell in cells)).rstrip()


def rank_map(
    sites: Sequence[Site], before: Mapping[str, int], after: Mapping[str, int], *, width: int = 80
) -> RankMap:
    """The map of a decision.

    A rank is a digit, from 10 on a letter (a = 10), and # above 35; no adapter is ·. Where layers are few an arrow
    beside it says what changed. Where they are more than columns some of them share one, which has the highest rank of
    its sites.

    Args:
        sites: that may carry adapters.
        before, after: path → rank, 0 or left out for none.
        width: columns of the terminal.

    Example:
        >>> sites = [Site(path=f"{i}.{part}", module=f"{i}.{part}", layer=i, scope="decoder", role=f"attn.{part}",
        ...               shape=(64, 64), kind="linear") for i in range(3) for part in "qv"]
        >>> before = dict.fromkeys((site.path for site in sites), 10)
        >>> for line in rank_map(sites, before, before | {"0.q": 0, "2.v": 12}).lines():
        ...     print(line)
          ranks by layer: a is 10, ▴ more, ▾ fewer, · none
             0  1  2
          q  ·▾ a  a
          v  a  a  c▴
    """
    names = _labels(sites)
    rows: dict[str, dict[int, list[Site]]] = {}
    for site in sites:
        rows.setdefault(names[site.scope, site.role], {}).setdefault(site.layer or 0, []).append(site)
    layers = 1 + max(layer for own in rows.values() for layer in own)
    room = max(1, width - EDGE - max(map(len, rows)) - 2)
    wide = min(3, max(1, room // layers))
    together = math.ceil(layers / room)

    def cell(own: Sequence[Site]) -> Cell:
        if not own:
            return Cell(" " * wide, False, False, False)
        rank = max(after.get(site.path, 0) for site in own)
        changes = [after.get(site.path, 0) - before.get(site.path, 0) for site in own]
        more, fewer = max(changes) > 0, min(changes) < 0
        mark = (UP if more else DOWN if fewer else " ") if wide > 1 else ""
        return Cell((_character(rank) + mark).ljust(wide), more, fewer, not rank)

    drawn = tuple(
        (
            name,
            tuple(
                cell([site for layer in range(first, first + together) for site in own.get(layer, ())])
                for first in range(0, layers, together)
            ),
        )
        for name, own in rows.items()
    )
    most = max((after.get(site.path, 0) for site in sites), default=0)
    meant = ["a is 10"] * (most > 9) + [f"{UP} more", f"{DOWN} fewer"] * (wide > 1) + ["· none"]
    several = f" ({together} layers a column, their highest)" if together > 1 else ""
    return RankMap(
        heading=f"ranks by layer{several}: {', '.join(meant)}",
        scale=_scale(layers, wide, together),
        rows=drawn,
    )


def _character(rank: int) -> str:
    if rank < 10:
        return str(rank) if rank else "·"
    return LETTERS[rank - 10] if rank - 10 < len(LETTERS) else "#"


def _labels(sites: Sequence[Site]) -> dict[tuple[str, str], str]:
    """(tower, role) → the shortest name that no other has: the part, the role, or both with the tower."""
    kinds = {(site.scope, site.role): site for site in sites}
    choices = {
        kind: (site.part or site.role, site.role, f"{site.scope} {site.role}") for kind, site in kinds.items()
    }
    named = [{kind: own[length] for kind, own in choices.items()} for length in range(3)]
    return next((names for names in named if len(set(names.values())) == len(names)), named[-1])


def _scale(layers: int, wide: int, together: int) -> str:
    """Numbers of layers above the columns that they begin, as many as stand apart."""
    written = ""
    steps = (1, 5, 10, 20, 50, 100, 200, 500)
    every = next((step for step in steps if step * wide / together >= (3 if wide > 1 else 5)), 1000)
    for layer in range(0, layers, every):
        written = written.ljust(layer // together * wide) + str(layer)
    return written
