r"""The placement language: from a text to its terms, and back to canonical text.

::

    placement := term (("+" | "-") term)*
    term      := selector ["@" layers] [":" rank]
    selector  := name ("," name)*
    name      := [scope "."] (set ["." part] | family ["." part] | part) | '"' exact or glob path '"'
    set       := all | attention | feedforward          (also: full = all, mlp = feedforward)
    layers    := span ("," span)* | first8 | last8 | top/N | middle/N | bottom/N
    span      := a | a..b                               (b excluded)
    rank      := integer ["!"] | "auto"

A comma before ``@`` separates names, one after it separates layers. Nothing here looks at a model:
:mod:`loratlas.placement.resolve` does.

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
an integer, or auto
10
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Literal, NoReturn

from loratlas.anatomy.role_table import FAMILIES, PARTS, PARTS_OF, SCOPES, SETS
from loratlas.placement.layer_ranges import Ends, Layers, Part, numbers
from loratlas.placement.terms import Name, Placement, Term, fail
from loratlas.placement.vocabulary import ALIASES

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
_INTEGER = re.compile(r"\d+")
_ENDS = re.compile(r"(first|last)(\d+)(?![A-Za-z0-9_/])")
_PART = re.compile(r"(top|middle|bottom)\s*/\s*(\d+)")
_MOST_LAYERS = 100_000


def parse(text: str) -> Placement:
    """Read a placement.

    Args:
        text: in the grammar above; spaces do not matter.

    Raises:
        PlacementError: with the position of the first character that cannot be.
    """
    return _Parser(text).placement()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def fail(self, found: str, instead: str, position: int | None = None) -> NoReturn:
        fail(self.text, self.at if position is None else position, found=found, instead=instead)

    def space(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def here(self) -> str:
        """The next word or character, for messages."""
        match = re.compile(r"[\w./]+|\S").match(self.text, self.at)
        return f"'{match[0]}'" if match else "the end of the text"

    def take(self, character: str) -> bool:
        self.space()
        if self.text.startswith(character, self.at):
            self.at += len(character)
            self.space()
            return True
        return False

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        self.space()
        found = pattern.match(self.text, self.at)
        if found:
            self.at = found.end()
        return found

    def placement(self) -> Placement:
        self.space()
        if self.at == len(self.text):
            self.fail("an empty text", "a placement such as attention:16")
        terms = [self.term(adds=True)]
        while True:
            self.space()
            if self.at == len(self.text):
                return Placement(source=self.text, terms=tuple(terms))
            if self.take("+"):
                terms.append(self.term(adds=True))
            elif self.take("-"):
                terms.append(self.term(adds=False))
            else:
                self.fail(f"{self.here()} behind a complete term", "+ or - and another term, or nothing")

    def term(self, *, adds: bool) -> Term:
        position = self.at
        names = [self.name()]
        while self.take(","):
            names.append(self.name())
        layers, layers_position = None, self.at
        if self.take("@"):
            layers_position = self.at
            layers = self.layers()
        rank: int | Literal["auto"] | None = None
        force, rank_position = False, self.at
        if self.take(":"):
            rank_position = self.at
            rank, force = self.rank()
            if not adds:
                self.fail(
                    "a rank behind a term that is taken away", "the term without ':' and rank", rank_position
                )
        return Term(
            adds=adds,
            names=tuple(names),
            layers=layers,
            rank=rank,
            force=force,
            position=position,
            layers_position=layers_position,
            rank_position=rank_position,
        )

    def name(self) -> Name:
        self.space()
        position = self.at
        for quote in ('"', "'"):
            if self.take(quote):
                end = self.text.find(quote, self.at)
                if end < 0:
                    self.fail("a quotation mark without its partner", f"{quote} behind the path", position)
                path = self.text[position + 1 : end]
                self.at = end + 1
                if not path.strip() or '"' in path:
                    self.fail("no path between the quotation marks", 'a path such as "h.0.*"', position)
                return Name(scope=None, word=path.strip(), quoted=True, position=position)
        match = self.match(_WORD)
        if not match:
            self.fail(
                f"{self.here()} where a name should be",
                'a set (all, attention, feedforward), a role such as attn.q, a part such as q, or a "path"',
            )
        words = match[0].split(".")
        scope = words.pop(0) if words[0] in SCOPES else None
        if not words:
            self.fail(f"a scope alone: {scope}", f"{scope}.all, or {scope}. and another name", position)
        words[0] = ALIASES.get(words[0], words[0])
        self.check(words, match[0], position)
        return Name(scope=scope, word=".".join(words), quoted=False, position=position)

    def check(self, words: list[str], written: str, position: int) -> None:
        first, *rest = words
        known = (*SETS, *ALIASES, *FAMILIES, *PARTS)
        if first not in known:
            near = get_close_matches(first, known, n=3, cutoff=0.5)
            hint = " or ".join(near) if near else "all, attention, feedforward, a role such as attn.q"
            self.fail(
                f"{first!r}, which names nothing", f'{hint}, or a path in quotes: "{written}"', position
            )
        if not rest:
            return
        if len(rest) > 1 or (first in PARTS and first not in FAMILIES):
            self.fail(
                f"more dots than a role has: {written}",
                f'family.part, or a path in quotes: "{written}"',
                position,
            )
        parts = PARTS if first in SETS else PARTS_OF.get(first, ())
        if rest[0] not in parts:
            near = get_close_matches(rest[0], parts, n=3, cutoff=0.3)
            has = ", ".join(near or parts) if parts else f"no parts; write {first} alone"
            self.fail(f"{rest[0]!r} is no part of {first}", f"of {first}: {has}", position)

    def layers(self) -> Layers:
        for pattern, kind in ((_ENDS, Ends), (_PART, Part)):
            position = self.at
            match = self.match(pattern)
            if match:
                if int(match[2]) == 0:
                    self.fail("a count of 0", f"{match[1]}{'/' if kind is Part else ''}1 or more", position)
                return kind(where=match[1], n=int(match[2]))
        spans = [self.span()]
        while self.take(","):
            spans.append(self.span())
        return numbers({layer for first, end in spans for layer in range(first, end)})

    def span(self) -> tuple[int, int]:
        self.space()
        position = self.at
        match = self.match(_INTEGER)
        if not match:
            self.fail(
                f"{self.here()} where layers should be",
                "a number, a..b, a,b,c, first8, last8, top/2, middle/2 or bottom/2",
            )
        first = end = int(match[0])
        if self.take(".."):
            last = self.match(_INTEGER)
            if not last:
                self.fail(f"{self.here()} where the end of a range should be", f"{first}..{first + 1}")
            end = int(last[0])
            if end <= first:
                self.fail(
                    f"{first}..{end} holds no layer, the end being excluded",
                    f"{first}..{first + 1}",
                    position,
                )
        else:
            end = first + 1
        if end > _MOST_LAYERS:
            self.fail(f"layer {end - 1}", "a layer that a model can have", position)
        return first, end

    def rank(self) -> tuple[int | Literal["auto"], bool]:
        position = self.at
        if self.text.startswith("auto", self.at):
            self.at += 4
            if self.at < len(self.text) and (self.text[self.at].isalnum() or self.text[self.at] == "!"):
                self.fail(f"{self.here()} behind auto", "auto alone", self.at)
            return "auto", False
        match = self.match(_INTEGER)
        if not match:
            self.fail(f"{self.here()} where a rank should be", "an integer, or auto")
        if int(match[0]) == 0:
            self.fail("rank 0", "a rank of 1 or more, or the term taken away with -", position)
        if self.at < len(self.text) and (self.text[self.at].isalpha() or self.text[self.at] == "."):
            self.fail(f"{self.here()} behind the rank {match[0]}", "an integer, or auto")
        return int(match[0]), self.take("!")
