r"""The placement language: from a text to its terms, and back to canonical text.

::

    placement := term (("+" | "-") term)*
    term      := selector ["@" layers] [":" rank]
    selector  := name ("," name)*
    name      := [scope "."] (set ["." part] | family ["." part] | part | suffix) | "all-linear"
                 | '"' exact or glob path '"' | 'legacy:"' suffix ("," suffix)* '"'
    set       := all | attention | feedforward          (also: full = all, mlp = feedforward)
    suffix    := the end of module names, such as q_proj, c_attn or attn.c_proj
    layers    := span ("," span)* | first8 | last8 | top/N | middle/N | bottom/N
    span      := a | a..b                               (b excluded)
    rank      := integer ["!"] | "auto"

``legacy:"c_attn,c_proj"`` holds what PEFT's ``target_modules=["c_attn", "c_proj"]`` adapts, matrices of several roles
included, so that a published list can be an arm; a plan says what such a list holds (`Plan.warnings`).

A comma before ``@`` separates names, one after it separates layers. Nothing here looks at a model:
:mod:`loratlas.placement.resolve` does. A name that is no word of the language is taken for the end of module names;
whether the model has such modules is seen there.

>>> parse(" mlp @ top/2:8+q , v:16 ").text
'feedforward@top/2:8 + q,v:16'
>>> from loratlas.errors import PlacementError
>>> try:
...     parse("attention:x")
... except PlacementError as error:
...     print(error.given.strip("\n"), error.found, error.instead, error.position, sep="\n")
    attention:x
              ^ (character 11)
'x' where a rank should be
`attention:8`, an integer, or auto
10
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal, NoReturn

from loratlas.anatomy.role_table import FAMILIES, PARTS, PARTS_OF, SCOPES, SETS
from loratlas.placement.layer_ranges import Ends, LayerRange, Part, merged
from loratlas.placement.terms import LEGACY, Edit, Mistake, Name, NameKind, Placement, Term
from loratlas.placement.vocabulary import ALIASES

ALL_LINEAR = "all-linear"
"""PEFT's word for every linear layer but the output head."""

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*")
_LINEAR = re.compile(r"all-linear(?![A-Za-z0-9_.-])", re.IGNORECASE)
_LEGACY = re.compile(LEGACY + r"\s*:\s*(?=[\"'])")
_INTEGER = re.compile(r"[0-9]+")
_ENDS = re.compile(r"(first|last)([0-9]+)(?![A-Za-z0-9_/])")
_PART = re.compile(r"(top|middle|bottom)\s*/\s*([0-9]+)")
_NEXT = re.compile(r"[\w./]+|\S")
_MOST_LAYERS = 100_000
_MOST_DIGITS = 9
MOST_CHARACTERS, MOST_NAMES = 4_000_000, 50_000
"""Bounds of a placement: far above the exact text of any model's table, and read within a second."""


def parse(text: str) -> Placement:
    """Read a placement.

    Args:
        text: in the grammar above; spaces do not matter.

    Raises:
        PlacementError: with the position of the first character that cannot be, and with changed texts that can.
    """
    try:
        return read_terms(text)
    except Mistake as mistake:
        error = mistake.refusal(read_terms)
    raise error


def read_terms(text: str) -> Placement:
    """As :func:`parse`, but a text that cannot be raises the Mistake itself."""
    if len(text) > MOST_CHARACTERS:
        raise Mistake(
            text[:100],
            99,
            found=f"a placement of {len(text):,} characters",
            advice=f"at most {MOST_CHARACTERS:,}; words instead of paths are shorter",
        )
    return _Parser(text).placement()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.names = 0

    def fail(
        self, found: str, advice: str = "", *edits: tuple[int, int, str], position: int | None = None
    ) -> NoReturn:
        raise Mistake(
            self.text,
            self.at if position is None else position,
            found=found,
            advice=advice,
            edits=[Edit(*edit) for edit in edits],
        )

    def space(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def here(self) -> str:
        """The next word or character, for messages."""
        match = _NEXT.match(self.text, self.at)
        if not match:
            return "the end of the text"
        return f"'{match[0]}'" if len(match[0]) <= 40 else f"'{match[0][:40]}…'"

    def here_end(self) -> int:
        match = _NEXT.match(self.text, self.at)
        return match.end() if match else self.at

    def take(self, character: str) -> bool:
        self.space()
        if self.text.startswith(character, self.at):
            self.at += len(character)
            self.space()
            return True
        return False

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        self.space()
        matched = pattern.match(self.text, self.at)
        if matched:
            self.at = matched.end()
        return matched

    def integer(self, digits: str, position: int) -> int:
        """A number that is small enough to be one of layers or ranks."""
        if len(digits.lstrip("0")) > _MOST_DIGITS:
            self.fail(
                f"a number of {len(digits):,} digits",
                "a smaller number",
                (position, position + len(digits), "8"),
                position=position,
            )
        return int(digits)

    def placement(self) -> Placement:
        self.space()
        if self.at == len(self.text):
            self.fail("an empty text", "or another placement", (0, len(self.text), "attention:8"))
        terms = [self.term(adds=True, separator=0)]
        while True:
            self.space()
            separator = self.at
            if self.at == len(self.text):
                return Placement(source=self.text, terms=tuple(terms))
            if self.take("+"):
                terms.append(self.term(adds=True, separator=separator))
            elif self.take("-"):
                terms.append(self.term(adds=False, separator=separator))
            else:
                at = self.at
                self.fail(
                    f"{self.here()} behind a complete term",
                    "+ or - before another term",
                    (at, at, "+ "),
                    (at, len(self.text), ""),
                )

    def term(self, *, adds: bool, separator: int) -> Term:
        position = self.at
        names = [self.name(separator)]
        while True:
            self.space()
            comma = self.at
            if not self.take(","):
                break
            names.append(self.name(comma))
        names_end = names[-1].end
        layers, layers_position, layers_end = None, names_end, names_end
        if self.take("@"):
            layers_position = self.at
            layers = self.layers(names_end)
            layers_end = self.at
        rank: int | Literal["auto"] | None = None
        force, rank_position, rank_end = False, layers_end, layers_end
        self.space()
        colon = self.at
        if self.take(":"):
            rank_position = self.at
            rank, force = self.rank()
            rank_end = self.at
            if not adds:
                self.fail(
                    "a rank behind a term that is taken away",
                    "the term without ':' and rank",
                    (colon, rank_end, ""),
                    position=rank_position,
                )
        return Term(
            adds=adds,
            names=tuple(names),
            layers=layers,
            rank=rank,
            force=force,
            position=position,
            names_end=names_end,
            layers_position=layers_position,
            layers_end=layers_end,
            rank_position=rank_position,
            rank_end=rank_end,
        )

    def name(self, separator: int) -> Name:
        """One name; ``separator`` is where the comma or sign before it stands."""
        self.space()
        self.names += 1
        position = self.at
        if self.names > MOST_NAMES:
            self.fail(f"more than {MOST_NAMES:,} names", "words that hold many sites, such as all")
        legacy = self.match(_LEGACY) is not None
        for quote in ('"', "'"):
            at = self.at
            if self.take(quote):
                path = self.path(quote, at)
                return replace(path, kind="legacy", position=position) if legacy else path
        if self.match(_LINEAR):
            return Name(scope=None, word=ALL_LINEAR, kind="linear", position=position, end=self.at)
        match = self.match(_WORD)
        if not match:
            at = self.at
            self.fail(
                f"{self.here()} where a name should be",
                'a set (all, attention, feedforward), a role such as attn.q, a part such as q, or a "path"',
                (separator, at, ""),
                (at, self.here_end(), ""),
                (at, at, "all "),
            )
        scope, word, kind = _read(match[0])
        return Name(scope=scope, word=word, kind=kind, position=position, end=self.at)

    def path(self, quote: str, position: int) -> Name:
        end = self.text.find(quote, position + 1)
        if end < 0:
            # Where the path ends nobody knows; at the next sign of the language, or with the text.
            stop = re.compile(r"[\s,@:+-]|$").search(self.text, position + 1)
            at = stop.start() if stop else len(self.text)
            self.fail(
                "a quotation mark without its partner",
                f"{quote} behind the path",
                (at, at, quote),
                (len(self.text), len(self.text), quote),
                position=position,
            )
        path = self.text[position + 1 : end]
        self.at = end + 1
        if not path.strip() or '"' in path:
            self.fail(
                "no path between the quotation marks",
                "or a whole module name in quotes",
                (position, self.at, "all"),
                position=position,
            )
        return Name(scope=None, word=path.strip(), kind="path", position=position, end=self.at)

    def layers(self, names_end: int) -> LayerRange:
        for pattern, kind in ((_ENDS, Ends), (_PART, Part)):
            self.space()
            position = self.at
            match = self.match(pattern)
            if match:
                n = self.integer(match[2], match.start(2))
                if n == 0:
                    self.fail("a count of 0", "1 or more", (*match.span(2), "1"), position=position)
                return kind(where=match[1], n=n)
        spans = [self.span(names_end)]
        while self.take(","):
            spans.append(self.span(names_end))
        return merged(spans)

    def span(self, names_end: int) -> tuple[int, int]:
        self.space()
        position = self.at
        match = self.match(_INTEGER)
        if not match:
            self.fail(
                f"{self.here()} where layers should be",
                "or after @ a number, a..b, a,b,c, first8, last8, top/2, middle/2 or bottom/2",
                (names_end, self.at, ""),
                *([] if self.text.startswith(":", self.at) else [(names_end, self.here_end(), "")]),
            )
        first = end = self.integer(match[0], position)
        if self.take(".."):
            at = self.at
            last = self.match(_INTEGER)
            if not last:
                self.fail(
                    f"{self.here()} where the end of a range should be",
                    "",
                    (at, self.here_end(), str(first + 1)),
                    (at, at, str(first + 1)),
                )
            end = self.integer(last[0], at)
            if end <= first:
                self.fail(
                    f"{first}..{end} holds no layer, the end being excluded",
                    "",
                    (position, self.at, str(first) if end == first else f"{end}..{first + 1}"),
                    position=position,
                )
        else:
            end = first + 1
        if end > _MOST_LAYERS:
            self.fail(
                f"layer {end - 1}",
                "a layer that a model can have",
                (position, self.at, "0"),
                position=position,
            )
        return first, end

    def rank(self) -> tuple[int | Literal["auto"], bool]:
        position = self.at
        if self.text.startswith("auto", self.at):
            self.at += 4
            if self.at < len(self.text) and (self.text[self.at].isalnum() or self.text[self.at] == "!"):
                self.fail(
                    f"{self.here()} behind auto",
                    "or auto alone, with a budget",
                    (position, self.here_end(), "8"),
                )
            return "auto", False
        match = self.match(_INTEGER)
        if not match:
            at, end = self.at, self.here_end()
            negative = re.compile(r"-\s*(?=[0-9])").match(self.text, at)
            signless = [(at, negative.end(), "")] if negative else []
            self.fail(
                f"{self.here()} where a rank should be",
                "an integer, or auto",
                *signless,
                (at, at, "8"),
                (at, end, "8"),
                (at, len(self.text), "8"),
            )
        rank = self.integer(match[0], match.start())
        if rank == 0:
            self.fail(
                "rank 0",
                "a rank of 1 or more, or the term taken away with -",
                (position, self.at, "1"),
                position=position,
            )
        if self.at < len(self.text) and (self.text[self.at].isalpha() or self.text[self.at] in "._"):
            self.fail(
                f"{self.here()} behind the rank {rank}", "an integer, or auto", (self.at, self.here_end(), "")
            )
        return rank, self.take("!")


def _read(written: str) -> tuple[str | None, str, NameKind]:
    """Scope, word and kind of a name without quotes.

    >>> _read("vision.mlp.down"), _read("mlp.c_proj"), _read("encoder.q_proj")
    (('vision', 'feedforward.down', 'word'), (None, 'mlp.c_proj', 'suffix'), ('encoder', 'q_proj', 'suffix'))
    """
    words = written.split(".")
    scope = words[0] if words[0] in SCOPES and len(words) > 1 else None
    first, *rest = words[1:] if scope else words
    first = ALIASES.get(first, first)
    parts = PARTS if first in SETS else PARTS_OF.get(first, ())
    known = first in SETS or first in FAMILIES or (first in PARTS and not rest)
    if known and (not rest or (len(rest) == 1 and rest[0] in parts)):
        return scope, ".".join((first, *rest)), "word"
    return scope, written.removeprefix(f"{scope}.") if scope else written, "suffix"
