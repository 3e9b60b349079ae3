"""The per-token table: one row per scored token, the same columns in memory and on disk, whoever scored it.

===========  ==========  ============================================================================
column       type        meaning
===========  ==========  ============================================================================
example      int32       index of the example among those scored
position     int32       index of the predicted token in its example; the first one is 0
segment      text        one of `SEGMENTS`
counted      bool        counted by the loss of loratlas
nll          float32     −log p, nats
uniform      float32     −log p averaged over the vocabulary, which label smoothing mixes in; null: not measured
error        float32     how far nll may be from that of unrounded logits; null: not measured
===========  ==========  ============================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SEGMENTS = ("answer", "prompt", "padding", "special")
"""What kind of token a row is about."""

_TYPES = {
    "example": np.int32,
    "position": np.int32,
    "segment": np.int8,
    "counted": np.bool_,
    "nll": np.float32,
    "uniform": np.float32,
    "error": np.float32,
}
COLUMNS = tuple(_TYPES)
OPTIONAL = ("uniform", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Scored tokens; every array is [M].

    Args:
        example: int32; index of the example among those scored.
        position: int32; index of the predicted token in its example.
        segment: int8; index into `SEGMENTS`.
        counted: bool; counted by the loss.
        nll: float32; −log p of that token, nats.
        uniform: float32; −log p averaged over the vocabulary; None: not measured.
        error: float32; how far ``nll`` may be from that of unrounded logits; None: not measured.
    """

    example: np.ndarray
    position: np.ndarray
    segment: np.ndarray
    counted: np.ndarray
    nll: np.ndarray
    uniform: np.ndarray | None = None
    error: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.nll)

    def __getitem__(self, rows: np.ndarray) -> Tokens:
        """Some of the rows, by a mask or by indices."""

        def column(name: str) -> Any:
            values = getattr(self, name)
            return None if values is None else values[rows]

        return Tokens(**{name: column(name) for name in COLUMNS})

    def sorted(self) -> Tokens:
        """The same rows by example and position."""
        return self[np.lexsort((self.position, self.example))]

    def sums(self, examples: int) -> tuple[np.ndarray, np.ndarray]:
        """(counted tokens, int64 [N]; their summed nll, float64 [N]) of each of ``examples`` examples.

        >>> tokens = Tokens(example=np.array([0, 0, 1]), position=np.array([1, 2, 1]), segment=np.zeros(3, np.int8),
        ...                 counted=np.array([True, False, True]), nll=np.array([1.0, 9.0, 2.0]))
        >>> tokens.sums(2)
        (array([1, 1]), array([1., 2.]))
        """
        rows = self.example[self.counted]
        losses = self.nll[self.counted].astype(np.float64)
        return (
            np.bincount(rows, minlength=examples),
            np.bincount(rows, weights=losses, minlength=examples),
        )


def concatenate(groups: Sequence[Tokens]) -> Tokens:
    """Tables one after the other; no rows for no tables.

    >>> len(concatenate([]))
    0
    """

    def column(name: str) -> Any:
        columns = [getattr(group, name) for group in groups]
        if not columns:
            return None if name in OPTIONAL else np.zeros(0, _TYPES[name])
        return None if any(c is None for c in columns) else np.concatenate(columns)

    return Tokens(**{name: column(name) for name in COLUMNS})
