"""The part of a placement after ``@``: which layers.

Layer 0 reads the embeddings; **bottom** is the end where it stands, **top** the end nearest the output.
``top/N``, ``middle/N`` and ``bottom/N`` are one N-th of the layers; their bounds are rounded (half up), so that
``bottom/2`` and ``top/2``, or ``bottom/3``, ``middle/3`` and ``top/3``, share all layers out and overlap nowhere.

>>> [Part(where=where, n=3).of(8) for where in ("bottom", "middle", "top")]
[(0, 1, 2), (3, 4), (5, 6, 7)]
>>> Numbers(spans=((0, 4), (6, 7))).text, Ends(where="last", n=2).of(8)
('0..4,6', (6, 7))
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Layers by number: ``3``, ``0..4`` (4 excluded), ``1,3,5`` or a mixture.

    Args:
        spans: (first, end) pairs, ascending, end excluded, none touching the next.
    """

    spans: tuple[tuple[int, int], ...]

    @property
    def text(self) -> str:
        """As written after ``@``."""
        return ",".join(str(a) if b == a + 1 else f"{a}..{b}" for a, b in self.spans)

    def of(self, layers: int) -> tuple[int, ...] | None:
        """The layers of a tower that has so many; None if it lacks one of them."""
        if not self.spans or self.spans[-1][1] > layers:
            return None
        return tuple(layer for a, b in self.spans for layer in range(a, b))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """``first8`` or ``last8``: so many layers from one end."""

    where: str
    n: int

    @property
    def text(self) -> str:
        """As written after ``@``."""
        return f"{self.where}{self.n}"

    def of(self, layers: int) -> tuple[int, ...] | None:
        """The layers of a tower that has so many; None if it has fewer than asked for."""
        if not 0 < self.n <= layers:
            return None
        return tuple(range(self.n)) if self.where == "first" else tuple(range(layers - self.n, layers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """``top/N``, ``middle/N`` or ``bottom/N``: one N-th of the layers."""

    where: str
    n: int

    @property
    def text(self) -> str:
        """As written after ``@``."""
        return f"{self.where}/{self.n}"

    def of(self, layers: int) -> tuple[int, ...] | None:
        """The layers of a tower that has so many; None if one N-th of them is less than one layer."""
        if not 0 < self.n <= layers:
            return None
        # In halves of an N-th: bottom is [0, 2), middle is centred, top ends at 2N.
        start = {"bottom": 0, "middle": self.n - 1, "top": 2 * self.n - 2}[self.where]
        first, end = (_round(half * layers, 2 * self.n) for half in (start, start + 2))
        return tuple(range(first, end)) or None


LayerRange = Numbers | Ends | Part


def numbers(layers: Iterable[int]) -> Numbers:
    """The shortest spans that hold exactly these layers.

    >>> numbers({7, 0, 1, 2}).text
    '0..3,7'
    """
    return merged((layer, layer + 1) for layer in layers)


def merged(spans: Iterable[tuple[int, int]]) -> Numbers:
    """The shortest spans that hold exactly the layers of these; the spans may overlap, in any order.

    >>> merged([(4, 6), (0, 5), (9, 10)]).text
    '0..6,9'
    """
    joined: list[tuple[int, int]] = []
    for first, end in sorted(spans):
        if joined and joined[-1][1] >= first:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((first, end))
    return Numbers(spans=tuple(joined))


def _round(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)
