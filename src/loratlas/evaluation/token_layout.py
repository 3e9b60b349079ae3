"""Examples as the rows of tokens that a forward condition gives to the model."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from loratlas.data.batches.batching import IGNORED, Batch, collate
from loratlas.data.examples import Example
from loratlas.evaluation.tokens import SEGMENTS

if TYPE_CHECKING:
    from loratlas.evaluation.forward_condition import Condition

ANSWER, PROMPT, PADDING, SPECIAL = (SEGMENTS.index(s) for s in ("answer", "prompt", "padding", "special"))


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRow:
    """Tokens of one row of a forward pass. All arrays are [L].

    Args:
        ids: int32.
        example: int32; which example a token belongs to.
        position: int32; its index there. Padding is behind the last position, or before 0.
        segment: int8; index into `SEGMENTS`.
        counted: bool; counted by the loss of loratlas.
        scored: bool; wanted in the table.
    """

    ids: np.ndarray
    example: np.ndarray
    position: np.ndarray
    segment: np.ndarray
    counted: np.ndarray
    scored: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice | np.ndarray) -> InputRow:
        return InputRow(**{name: getattr(self, name)[part] for name in FIELDS})

    def digest(self, before: int = 0) -> int:
        """CRC-32 over what it holds, continued from ``before``."""
        for name in FIELDS:
            before = zlib.crc32(np.ascontiguousarray(getattr(self, name)).tobytes(), before)
        return before


FIELDS = ("ids", "example", "position", "segment", "counted", "scored")


def end_to_end(rows: Sequence[InputRow]) -> InputRow:
    """Rows laid end to end."""
    return InputRow(**{name: np.concatenate([getattr(r, name) for r in rows]) for name in FIELDS})


def input_rows(
    examples: Iterable[Example], condition: Condition, *, everything: bool, special: Iterable[int]
) -> Iterator[InputRow]:
    """Cut, window and join examples as a condition asks, one at a time.

    Args:
        examples: the k-th gets the name k.
        condition: its truncation, window, stride and stream.
        everything: score every token that is predicted from something, not the counted ones only.
        special: ids of special tokens.
    """
    ids = np.fromiter(special, dtype=np.int64)
    whole = (_row(index, example, everything, ids) for index, example in enumerate(examples))
    limit = condition.max_length
    if limit is not None:
        cut = slice(None, limit) if condition.side == "right" else slice(-limit, None)
        whole = (row[cut] for row in whole)
    if condition.window is None:
        rows = whole
    elif condition.stream:
        rows = _windows(whole, condition.window, condition.stride or condition.window)
    else:
        window, stride = condition.window, condition.stride or condition.window
        rows = (part for row in whole for part in _windows([row], window, stride))
    for row in rows:
        predicted = np.arange(len(row)) >= condition.ahead
        yield replace(row, scored=row.scored & predicted)


def segments_of(ids: np.ndarray, labelled: np.ndarray, special: np.ndarray) -> np.ndarray:
    """Segment of every token of an example: indices into `SEGMENTS`, int8."""
    segment = np.where(np.isin(ids, special), SPECIAL, np.where(labelled, ANSWER, PROMPT))
    return segment.astype(np.int8)


def _row(index: int, example: Example, everything: bool, special: np.ndarray) -> InputRow:
    n = len(example)
    return InputRow(
        ids=np.asarray(example.input_ids, dtype=np.int32),
        example=np.full(n, index, dtype=np.int32),
        position=np.arange(n, dtype=np.int32),
        segment=segments_of(example.input_ids, example.labelled, special),
        counted=np.asarray(example.labelled, dtype=bool),
        scored=np.ones(n, dtype=bool) if everything else np.asarray(example.labelled, dtype=bool),
    )


def _windows(source: Iterable[InputRow], window: int, stride: int) -> Iterator[InputRow]:
    """Windows over the source laid end to end; what an earlier window scored is not scored again."""
    held: list[InputRow] = []
    size = 0
    seen = 0  # tokens at the front of `held` that an earlier window has scored
    for row in source:
        held.append(row)
        size += len(row)
        while size > window:
            whole = end_to_end(held)
            yield _score_once(whole[:window], seen)
            held, size, seen = [whole[stride:]], size - stride, window - stride
    if size > seen:
        yield _score_once(end_to_end(held), seen)


def _score_once(row: InputRow, seen: int) -> InputRow:
    scored = row.scored.copy()
    scored[:seen] = False
    return replace(row, scored=scored)


def pad_rows(
    group: Sequence[InputRow], side: str, pad_id: int, *, everything: bool, ahead: int
) -> list[InputRow]:
    """Rows of one batch padded to the longest; padding, and what it predicts, is scored where everything is."""
    longest = max(len(row) for row in group)
    padded = []
    for row in group:
        n = longest - len(row)
        first, last = (row.position[0] - n, row.position[-1] + 1) if len(row) else (0, 0)
        start = last if side == "right" else first
        filler = InputRow(
            ids=np.full(n, pad_id, dtype=np.int32),
            example=np.full(n, row.example[0], dtype=np.int32),
            position=(start + np.arange(n)).astype(np.int32),
            segment=np.full(n, PADDING, dtype=np.int8),
            counted=np.zeros(n, dtype=bool),
            scored=np.full(n, everything),
        )
        whole = end_to_end([row, filler] if side == "right" else [filler, row])
        scored = (np.arange(longest) >= ahead) & (whole.scored | everything)
        padded.append(replace(whole, scored=scored))
    return padded


def batch_of(group: Sequence[InputRow], *, packed: bool, pad_id: int, ahead: int) -> tuple[Batch, InputRow]:
    """A batch for the model, and the scored tokens in the batch's order.

    Padding inside the rows is masked.
    """
    import torch

    examples = [Example(input_ids=row.ids, labelled=row.scored, row=0) for row in group]
    batch = collate(examples, packed=packed, pad_id=pad_id)
    width = batch.input_ids.shape[1]
    starts = np.cumsum([0, *batch.lengths])[:-1] if packed else np.arange(len(group)) * width
    indices = [start + np.flatnonzero(row.scored) for start, row in zip(starts, group, strict=True)]
    targets = np.full(batch.targets.numel(), IGNORED, dtype=np.int64)
    scored = end_to_end([row[row.scored] for row in group])
    where = np.concatenate(indices) - ahead
    targets[where] = scored.ids
    changes = {
        "targets": torch.from_numpy(targets).reshape(batch.targets.shape),
        "where": torch.from_numpy(where),
        "labelled": len(where),
    }
    if not packed:
        mask = np.zeros(batch.targets.shape, dtype=np.int64)
        for index, row in enumerate(group):
            mask[index, : len(row)] = row.segment != PADDING
        changes["attention_mask"] = torch.from_numpy(mask)
    return replace(batch, **changes), scored
