"""The per-token table: what every definition of loss is computed from, without the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loratlas.errors import DataError
from loratlas.evaluation.loss_files import read_tokens
from loratlas.evaluation.tokens import SEGMENTS, Tokens

if TYPE_CHECKING:
    from loratlas.evaluation.score import Scores

PARTS = ("answer", "end", "prompt", "special", "padding", "tail")
"""What a row is to a definition: its segment; of the special tokens which are counted (``end``); of the tokens that are
not counted which ones a template writes behind the end of an answer (``tail``)."""

COUNTED = ("answer", "end")
"""What the loss of loratlas counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTable:
    """One row per scored token, of one model under one condition; rows ordered by example and position.

    A row may also stand for several tokens of one example (`of_scores`): its losses are then sums.

    Args:
        example: int64 [M]; which example.
        position: int64 [M]; place of the token in its example. (example, position) names the token: tables of
            other conditions are joined on it.
        part: int8 [M]; index into `PARTS`.
        tokens: int64 [M]; tokens that the row stands for, 1 in a per-token table.
        nll: float64 [M]; −log p, nats.
        uniform: float64 [M]; −log p averaged over the vocabulary, which label smoothing mixes in; None: not taken.
        error: float64 [M]; how far −log p may be from that of unrounded logits; None: not taken.
        tokenizer: names the tokenizer; tables of two tokenizers are compared example by example.
        condition: how the model was run, in words.
    """

    example: np.ndarray
    position: np.ndarray
    part: np.ndarray
    tokens: np.ndarray
    nll: np.ndarray
    uniform: np.ndarray | None = None
    error: np.ndarray | None = None
    tokenizer: str = ""
    condition: str = ""

    def __len__(self) -> int:
        return len(self.nll)

    def covered(self, parts: Sequence[str]) -> np.ndarray:
        """Which rows are of the given parts, bool [M]."""
        return np.isin(self.part, [PARTS.index(part) for part in parts])

    @staticmethod
    def of_scores(scores: Scores) -> LossTable:
        """One row per example: enough for every definition that sees counted tokens of one condition only.

        >>> from loratlas.evaluation.score import Scores
        >>> LossTable.of_scores(Scores(example=np.array([0]), n=np.array([3]), nll=np.array([6.0]))).tokens
        array([3])
        """
        size = len(scores.n)
        return LossTable(
            example=np.asarray(scores.example, dtype=np.int64),
            position=np.zeros(size, dtype=np.int64),
            part=np.zeros(size, dtype=np.int8),
            tokens=np.asarray(scores.n, dtype=np.int64),
            nll=np.asarray(scores.nll, dtype=np.float64),
        )


def parts_of(tokens: Tokens) -> np.ndarray:
    """Indices into `PARTS`, int8 [M]; tokens by example and position.

    What follows the last counted token of an example is a template's tail (a line break behind the end token, say). As
    many tokens behind earlier answers of the example are its tail too, as far as they are not counted.

    >>> columns = {"example": np.zeros(5, int), "position": np.arange(5), "nll": np.zeros(5)}
    >>> segment, counted = np.array([1, 0, 3, 1, 3]), np.array([False, True, True, False, False])
    >>> [PARTS[i] for i in parts_of(Tokens(segment=segment, counted=counted, **columns))]
    ['prompt', 'answer', 'end', 'tail', 'tail']
    """
    by_segment = np.array([PARTS.index(name) for name in SEGMENTS], dtype=np.int8)
    part = by_segment[np.asarray(tokens.segment)]
    counted = np.asarray(tokens.counted)
    part = np.where((part == PARTS.index("special")) & counted, np.int8(PARTS.index("end")), part)
    text = part != PARTS.index("padding")
    example = np.asarray(tokens.example)
    for rows in np.split(np.arange(len(part)), np.flatnonzero(np.diff(example)) + 1):
        rows = rows[text[rows]]
        last = np.flatnonzero(counted[rows])
        tail = len(rows) - 1 - int(last[-1]) if len(last) else 0
        if not tail:
            continue
        # Steps since the last counted token; before the first answer there is none.
        index = np.arange(len(rows))
        since = index - np.maximum.accumulate(np.where(counted[rows], index, -len(rows) - tail))
        part[rows[(since >= 1) & (since <= tail)]] = PARTS.index("tail")
    return part


def read_table(folder: Path, *, tokenizer: str = "", condition: str = "") -> LossTable:
    """The table that `loratlas eval --out` or `loratlas.evaluation.token_scorer.measure` left in a folder.

    Raises:
        DataError: no table there, or a damaged one.
    """
    return table_of(read_tokens(folder), tokenizer=tokenizer, condition=condition)


def table_of(tokens: Tokens, *, tokenizer: str = "", condition: str = "") -> LossTable:
    """Scored tokens as evidence."""

    def wide(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else values.astype(np.float64)

    return LossTable(
        example=tokens.example.astype(np.int64),
        position=tokens.position.astype(np.int64),
        part=parts_of(tokens),
        tokens=np.ones(len(tokens), dtype=np.int64),
        nll=tokens.nll.astype(np.float64),
        uniform=wide(tokens.uniform),
        error=wide(tokens.error),
        tokenizer=tokenizer,
        condition=condition,
    )


def require_finite(table: LossTable, rows: np.ndarray) -> None:
    """Refuse losses that no mean survives, by the name of the first one.

    Raises:
        DataError: a loss among ``rows`` (bool [M]) is infinite or not a number.
    """
    bad = np.flatnonzero(rows & ~np.isfinite(table.nll))
    if not len(bad):
        return
    first = bad[0]
    what = "log-probability −inf" if table.nll[first] == np.inf else "a log-probability that is no number"
    if table.tokens[first] == 1:
        where = f"token {int(table.position[first])} of example {int(table.example[first])}"
    else:
        where = f"a token of example {int(table.example[first])}"
    raise DataError(
        given="losses to audit",
        found=f"{where} has {what} ({len(bad)} such)",
        instead="a model whose logits are finite there (float32 instead of float16), or rows without that token",
    )


ELSEWHERE = 1 << 24
"""Added to the positions of tokens that the reference does not have."""


def align(table: LossTable, ids: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> LossTable:
    """The same table with the positions of another tokenisation of the same texts by the same tokenizer.

    Tokens of the common beginning and of the common end of an example keep or get the reference's positions; those in
    between (merged across the boundary of prompt and answer, a begin token more or less) get positions of their own.

    Args:
        table: per-token.
        ids: what was scored, example by example.
        reference: what the other table was made of.

    >>> one = LossTable(example=np.array([0, 0]), position=np.array([1, 2]), part=np.array([0, 0]),
    ...             tokens=np.array([1, 1]), nll=np.array([1.0, 2.0]))
    >>> align(one, [np.array([5, 8, 7])], [np.array([5, 6, 9, 7])]).position - [ELSEWHERE, 0]
    array([1, 3])
    """
    position = table.position.copy()
    for example in np.unique(table.example):
        mine, theirs = ids[int(example)], reference[int(example)]
        short = min(len(mine), len(theirs))
        same = mine[:short] == theirs[:short]
        front = short if same.all() else int(np.argmin(same))
        same = mine[::-1][: short - front] == theirs[::-1][: short - front]
        back = short - front if same.all() else int(np.argmin(same))
        rows = np.flatnonzero(table.example == example)
        p = table.position[rows]
        moved = np.where(p >= len(mine) - back, p + len(theirs) - len(mine), p + ELSEWHERE)
        position[rows] = np.where(p < front, p, moved)
    return replace(table, position=position)
