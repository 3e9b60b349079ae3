"""What a placement is made of once it is read: names, terms, and how an error points into the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NoReturn

from loratlas.errors import PlacementError
from loratlas.placement.layer_ranges import Layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """One name of a selector.

    Args:
        scope: the tower, or None for the text towers. Always None for a path.
        word: set, family or part, with ``.part`` behind it where one was given; or the quoted path.
        quoted: whether the word is an exact or glob path.
        position: index of its first character in the text.
    """

    scope: str | None
    word: str
    quoted: bool
    position: int

    @property
    def text(self) -> str:
        """As written in a selector."""
        if self.quoted:
            return f'"{self.word}"'
        return f"{self.scope}.{self.word}" if self.scope else self.word


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One term.

    Args:
        adds: True behind ``+``, False behind ``-``.
        names: the selector.
        layers: those behind ``@``; None for all.
        rank: an integer, ``"auto"``, or None where none was written.
        force: whether ``!`` lets this rank win over an earlier term's.
        position: index of the first character; ``layers_position`` and ``rank_position`` likewise.
    """

    adds: bool
    names: tuple[Name, ...]
    layers: Layers | None
    rank: int | Literal["auto"] | None
    force: bool
    position: int
    layers_position: int = 0
    rank_position: int = 0

    @property
    def text(self) -> str:
        """As written, without its sign."""
        layers = f"@{self.layers.text}" if self.layers else ""
        rank = f":{self.rank}{'!' if self.force else ''}" if self.rank is not None else ""
        return ",".join(name.text for name in self.names) + layers + rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A parsed placement.

    Args:
        source: the text it was read from; errors point into it.
        terms: at least one, the first of which adds.
    """

    source: str
    terms: tuple[Term, ...]

    @property
    def text(self) -> str:
        """Canonical text: parsing it gives the same terms, and two texts of the same terms give the same one."""
        first, *rest = self.terms
        return first.text + "".join(f" {'+' if term.adds else '-'} {term.text}" for term in rest)

    @property
    def wants_budget(self) -> bool:
        """Whether some term asks for a rank that only a budget can give."""
        return any(term.rank == "auto" for term in self.terms)


def fail(source: str, position: int, *, found: str, instead: str) -> NoReturn:
    """Raise a PlacementError that shows the text with a caret under the character at ``position``."""
    # One line of a terminal at most: of a long text the surroundings are enough.
    start = max(0, position - 60) if len(source) > 90 else 0
    shown = source[start : start + 90].replace("\n", " ").replace("\t", " ")
    shown = ("…" if start else "") + shown + ("…" if start + 90 < len(source) else "")
    pad = " " * (position - start + (1 if start else 0))
    raise PlacementError(
        given=f"\n    {shown}\n    {pad}^ (character {position + 1})",
        found=found,
        instead=instead,
        position=position,
    )
