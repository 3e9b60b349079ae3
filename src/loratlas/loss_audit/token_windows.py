"""Examples as the lines of tokens that a condition feeds to the model."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from loratlas.data.batching import IGNORED, Batch, collate
from loratlas.data.examples import Example
from loratlas.evaluation.parquet import SEGMENTS

if TYPE_CHECKING:
    from loratlas.loss_audit.pass_conditions import Condition

ANSWER, PROMPT, PADDING, SPECIAL = (SEGMENTS.index(s) for s in ("answer", "prompt", "padding", "special"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Tokens that are fed together. All arrays are [L].

    Args:
        ids: int32.
        example: int32; which example a token belongs to.
        position: int32; its place there. Filling stands behind the last place, or before 0.
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

    def __getitem__(self, here: slice | np.ndarray) -> Line:
        return Line(**{name: getattr(self, name)[here] for name in COLUMNS})

    def digest(self, before: int = 0) -> int:
        """CRC-32 over what it holds, continued from ``before``."""
        for name in COLUMNS:
            before = zlib.crc32(np.ascontiguousarray(getattr(self, name)).tobytes(), before)
        return before


COLUMNS = ("ids", "example", "position", "segment", "counted", "scored")


def joined(parts: Sequence[Line]) -> Line:
    """Lines laid end to end."""
    return Line(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in COLUMNS})


def lines(
    examples: Iterable[Example], condition: Condition, *, everything: bool, special: Iterable[int]
) -> Iterator[Line]:
    """Cut, window and join examples as a condition asks, one at a time.

    Args:
        examples: the k-th gets the name k.
        condition: its truncation, window, stride and stream.
        everything: score every token that is predicted from something, not the counted ones only.
        special: ids of special tokens.
    """
    ids = np.fromiter(special, dtype=np.int64)
    whole = (_line(index, example, everything, ids) for index, example in enumerate(examples))
    limit = condition.max_length
    if limit is not None:
        cut = slice(None, limit) if condition.side == "right" else slice(-limit, None)
        whole = (line[cut] for line in whole)
    if condition.window is None:
        found = whole
    elif condition.stream:
        found = _windows(whole, condition.window, condition.stride or condition.window)
    else:
        window, stride = condition.window, condition.stride or condition.window
        found = (part for line in whole for part in _windows([line], window, stride))
    for line in found:
        predicted = np.arange(len(line)) >= condition.ahead
        yield replace(line, scored=line.scored & predicted)


def _line(index: int, example: Example, everything: bool, special: np.ndarray) -> Line:
    n = len(example)
    is_special = np.isin(example.input_ids, special)
    segment = np.where(is_special, SPECIAL, np.where(example.labelled, ANSWER, PROMPT))
    return Line(
        ids=np.asarray(example.input_ids, dtype=np.int32),
        example=np.full(n, index, dtype=np.int32),
        position=np.arange(n, dtype=np.int32),
        segment=segment.astype(np.int8),
        counted=np.asarray(example.labelled, dtype=bool),
        scored=np.ones(n, dtype=bool) if everything else np.asarray(example.labelled, dtype=bool),
    )


def _windows(source: Iterable[Line], window: int, stride: int) -> Iterator[Line]:
    """Windows over the source laid end to end; what an earlier window scored is not scored again."""
    held: list[Line] = []
    size = 0
    seen = 0  # tokens at the front of `held` that an earlier window has scored
    for line in source:
        held.append(line)
        size += len(line)
        while size > window:
            whole = joined(held)
            yield _once(whole[:window], seen)
            held, size, seen = [whole[stride:]], size - stride, window - stride
    if size > seen:
        yield _once(joined(held), seen)


def _once(line: Line, seen: int) -> Line:
    scored = line.scored.copy()
    scored[:seen] = False
    return replace(line, scored=scored)


def side_by_side(
    group: Sequence[Line], side: str, pad_id: int, *, everything: bool, ahead: int
) -> list[Line]:
    """Lines of one batch filled to the longest; the filling, and what it predicts, is scored where everything is."""
    longest = max(len(line) for line in group)
    filled = []
    for line in group:
        n = longest - len(line)
        first, last = (line.position[0] - n, line.position[-1] + 1) if len(line) else (0, 0)
        start = last if side == "right" else first
        filler = Line(
            ids=np.full(n, pad_id, dtype=np.int32),
            example=np.full(n, line.example[0], dtype=np.int32),
            position=(start + np.arange(n)).astype(np.int32),
            segment=np.full(n, PADDING, dtype=np.int8),
            counted=np.zeros(n, dtype=bool),
            scored=np.full(n, everything),
        )
        whole = joined([line, filler] if side == "right" else [filler, line])
        scored = (np.arange(longest) >= ahead) & (whole.scored | everything)
        filled.append(replace(whole, scored=scored))
    return filled


def batch_of(group: Sequence[Line], *, packed: bool, pad_id: int, ahead: int) -> tuple[Batch, Line]:
    """A batch for the model, and what stands at each scored place, in the batch's order.

    Filling inside the lines is masked as padding is.
    """
    import torch

    examples = [Example(input_ids=line.ids, labelled=line.scored, row=0) for line in group]
    batch = collate(examples, packed=packed, pad_id=pad_id)
    width = batch.input_ids.shape[1]
    starts = np.cumsum([0, *batch.lengths])[:-1] if packed else np.arange(len(group)) * width
    places = [start + np.flatnonzero(line.scored) for start, line in zip(starts, group, strict=True)]
    targets = np.full(batch.targets.numel(), IGNORED, dtype=np.int64)
    told = joined([line[line.scored] for line in group])
    where = np.concatenate(places) - ahead
    targets[where] = told.ids
    changes = {
        "targets": torch.from_numpy(targets).reshape(batch.targets.shape),
        "where": torch.from_numpy(where),
        "labelled": len(where),
    }
    if not packed:
        mask = np.zeros(batch.targets.shape, dtype=np.int64)
        for row, line in enumerate(group):
            mask[row, : len(line)] = line.segment != PADDING
        changes["attention_mask"] = torch.from_numpy(mask)
    return replace(batch, **changes), told
