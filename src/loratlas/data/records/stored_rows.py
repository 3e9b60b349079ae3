"""Rows that lie in a file as records and are made when they are asked for."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from loratlas.data.records.line_files import LineFile
from loratlas.data.records.literals import DECODER
from loratlas.data.records.row_forms import RowReader
from loratlas.data.rows import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBlock:
    """Lines that were looked over.

    Args:
        file: where they lie.
        start, size: offset and length in bytes.
        first: index of the first row of the source in it.
    """

    file: LineFile
    start: int
    size: int
    first: int


class StoredRows(Sequence[Row]):
    """A sequence of rows that needs memory for one block of them, however many there are.

    Args:
        blocks: in order; all were looked over with `reader`.
        count: rows in them.
        reader: makes a row of a record.
        spans: the stretches of rows that this sequence has, in order; None for all.
    """

    def __init__(
        self,
        blocks: Sequence[StoredBlock],
        count: int,
        reader: RowReader,
        spans: Sequence[range] | None = None,
    ) -> None:
        self._blocks, self._reader = blocks, reader
        self._spans = [span for span in ([range(count)] if spans is None else spans) if len(span)]
        self._ends = [0]
        for span in self._spans:
            self._ends.append(self._ends[-1] + len(span))
        self._firsts = [block.first for block in blocks]
        self._lock = threading.Lock()
        self._open: tuple[int, list[bytes]] = (-1, [])

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Row, ...]: ...
    def __getitem__(self, index: int | slice) -> Row | tuple[Row, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        span = bisect_right(self._ends, index) - 1
        return self._row(self._spans[span][index - self._ends[span]], index)

    def __iter__(self) -> Iterator[Row]:
        index = 0
        for span in self._spans:
            for stored in span:
                yield self._row(stored, index)
                index += 1

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (StoredRows, tuple, list)):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self):,} rows of {self._reader.source}>"

    def _row(self, stored: int, index: int) -> Row:
        at = bisect_right(self._firsts, stored) - 1
        with self._lock:
            opened, lines = self._open
            if opened != at:
                block = self._blocks[at]
                data = block.file.read(block.start, block.size)
                lines = [line for line in data.split(b"\n") if line.strip()]
                self._open = at, lines
        record = DECODER.decode(lines[stored - self._firsts[at]].decode("utf-8"))
        return self._reader.row(record, index)
