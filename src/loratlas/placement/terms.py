"""What a placement is made of once it is read: names, terms, and how an error points into the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeAlias

from loratlas.errors import PlacementError
from loratlas.placement.layer_ranges import LayerRange

NameKind: TypeAlias = Literal["word", "path", "suffix", "linear", "legacy"]

LEGACY = "legacy"
"""In front of a quoted list of module names: see `loratlas.placement.legacy`."""

_MOST_SHOWN = 3
_LONG = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """One name of a selector.

    Args:
        scope: the tower, or None for the text towers. Always None for a path.
        word: set, family or part, with ``.part`` behind it where one was given; or the path, or the end of one.
        kind: ``word`` of the language, a quoted ``path``, the ``suffix`` of module names that people know from
            PEFT (``q_proj``, ``attn.c_proj``), ``linear``: PEFT's ``all-linear``, or ``legacy``: a list of such ends
            that is read as PEFT reads it, whatever the roles behind them.
        position: index of its first character in the text.
        end: index behind its last character.
    """

    scope: str | None
    word: str
    kind: NameKind
    position: int
    end: int = 0

    @property
    def quoted(self) -> bool:
        """Whether the word is an exact or glob path."""
        return self.kind == "path"

    @property
    def text(self) -> str:
        """As written in a selector."""
        if self.quoted:
            return f'"{self.word}"'
        if self.kind == "legacy":
            return f'{LEGACY}:"{self.word}"'
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
        names_end, layers_end, rank_end: index behind the last character of each.
    """

    adds: bool
    names: tuple[Name, ...]
    layers: LayerRange | None
    rank: int | Literal["auto"] | None
    force: bool
    position: int
    names_end: int = 0
    layers_position: int = 0
    layers_end: int = 0
    rank_position: int = 0
    rank_end: int = 0

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


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of the text that may mend it: what stands from ``start`` to ``end`` is replaced.

    >>> Edit(0, 5, "attn.q").of("q_prj:8")
    'attn.q:8'
    """

    start: int
    end: int
    new: str

    def of(self, source: str) -> str:
        """The text after the change."""
        return source[: self.start] + self.new + source[self.end :]


class Mistake(Exception):
    """Why a text cannot be, before it is known which of the changes to it would work.

    Args:
        source: the text.
        position: index of the character where the trouble begins.
        found: what was found there.
        advice: what to write, in words; follows the suggestions, or stands alone where no change works.
        edits: changes to try, the best first.
    """

    def __init__(
        self, source: str, position: int, *, found: str, advice: str = "", edits: Sequence[Edit] = ()
    ) -> None:
        super().__init__(found)
        self.source, self.position = source, position
        self.found, self.advice, self.edits = found, advice, edits

    def refusal(self, read: Callable[[str], object]) -> PlacementError:
        """The error for people: only texts that work are suggested.

        Args:
            read: reads a whole text, and raises a Mistake where it cannot be. A text works if it can be read, or if
                the next trouble lies behind the change.
        """
        mended = (_mended(edit, self.source, read) for edit in dict.fromkeys(self.edits))
        texts = tuple(islice(dict.fromkeys(text for text in mended if text is not None), _MOST_SHOWN))
        texts = tuple(text for text in texts if len(text) <= _LONG) or texts
        if any(len(text) > _LONG for text in texts):
            pieces = (_changed(self.source, text) for text in texts)
            shown = " or ".join(f"`{piece}`" for piece in dict.fromkeys(pieces) if 0 < len(piece) <= _LONG)
            shown = f"{shown} there" if shown else ""
        else:
            shown = " or ".join(f"`{text}`" for text in texts)
        return PlacementError(
            given=_pointed(self.source, self.position),
            found=self.found,
            instead=", ".join(words for words in (shown, self.advice) if words) or "another text",
            position=self.position,
            suggestions=texts,
        )


def _mended(edit: Edit, source: str, read: Callable[[str], object], tries: int = 3) -> str | None:
    """The text after a change, and after what mends that one where it is wrong at the same place; None if nothing."""
    text = edit.of(source).strip()
    if text == source.strip():
        return None
    try:
        read(text)
    except Mistake as next_one:
        if next_one.position > edit.start + len(edit.new):
            return text
        if tries == 1:
            return None
        more = (_mended(another, text, read, tries - 1) for another in next_one.edits[:_MOST_SHOWN])
        return next((mended for mended in more if mended is not None), None)
    return text


def _changed(source: str, text: str) -> str:
    """What a text has that its source has not, as whole words; empty where something was only taken away.

    >>> _changed("q + ffn.donw:4 + v", "q + ffn.down:4 + v")
    'ffn.down:4'
    """
    start = _alike(source, text)
    end = _alike(source[start:][::-1], text[start:][::-1])
    stop = len(text) - end
    while start and not text[start - 1].isspace() and text[start - 1] != ",":
        start -= 1
    while stop < len(text) and not text[stop].isspace() and text[stop] != ",":
        stop += 1
    piece = text[start:stop]
    return "" if source[start:].startswith(piece) else piece


def _alike(one: str, other: str) -> int:
    """Number of characters that two texts have alike from their beginning."""
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _pointed(source: str, position: int) -> str:
    """The text with a caret under the character at ``position``."""
    # One line of a terminal at most: of a long text the surroundings are enough.
    start = max(0, position - 60) if len(source) > 90 else 0
    shown = "".join(c if c.isprintable() else " " for c in source[start : start + 90])
    shown = ("…" if start else "") + shown + ("…" if start + 90 < len(source) else "")
    pad = " " * (position - start + (1 if start else 0))
    return f"\n    {shown}\n    {pad}^ (character {position + 1})"
