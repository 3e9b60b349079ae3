"""Files of lines, read block by block, also long after they were looked over."""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from loratlas.errors import DataError

BLOCK = 1 << 17
"""Bytes read at a time, rounded up to whole lines: few enough to stay in the cache of a core."""

IN_MEMORY = 32 << 20
"""Bytes of records made here (from CSV, Parquet, a list) that are kept in memory; more goes to a temporary file."""

BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class LineBlock:
    """Whole lines of a file.

    Args:
        file: where they lie.
        start: offset of the first byte.
        data: the bytes.
        line: number of the first line, from 1.
        lines: how many.
    """

    file: LineFile
    start: int
    data: bytes
    line: int
    lines: int


class LineFile:
    """A file of lines that several threads may read; one that changes while it is in use is refused.

    Args:
        file: open for reading bytes.
        name: what the user wrote, for errors.
        lines_are_rows: whether a line number means something to the user (the file is theirs).
    """

    def __init__(self, file: IO[bytes], name: str, *, lines_are_rows: bool = False) -> None:
        self._file, self.name, self.lines_are_rows = file, name, lines_are_rows
        self._lock = threading.Lock()
        weakref.finalize(self, file.close)
        self._stamp = self._now()

    @classmethod
    def open(cls, path: Path, name: str) -> LineFile:
        """A file of the user's, as it is."""
        return cls(path.open("rb"), name, lines_are_rows=True)

    @classmethod
    def written(cls, chunks: Iterable[bytes], name: str, *, lines_are_rows: bool = False) -> LineFile:
        """A temporary file with these bytes; it disappears with the object."""
        file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY, prefix="loratlas-")  # noqa: SIM115
        try:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
        except BaseException:
            file.close()
            raise
        return cls(file, name, lines_are_rows=lines_are_rows)  # type: ignore[arg-type]

    def _now(self) -> tuple[int, int] | None:
        # Bytes in memory have no descriptor, and change under nobody's hands.
        if isinstance(self._file, tempfile.SpooledTemporaryFile):
            return None
        stat = os.fstat(self._file.fileno())
        return stat.st_size, stat.st_mtime_ns

    def read(self, start: int, size: int, *, whole_line: bool = False) -> bytes:
        """Bytes from an offset on; with `whole_line`, as many more as end the last line.

        Raises:
            DataError: the file was changed since it was opened, or can no longer be read.
        """
        try:
            with self._lock:
                self._file.seek(start)
                data = self._file.read(size)
                if whole_line and data and not data.endswith(b"\n"):
                    data += self._file.readline()
                now = self._now()
        except OSError as error:
            raise DataError(
                given=self.name, found=f"it cannot be read ({error})", instead="a readable file"
            ) from error
        if now != self._stamp:
            raise DataError(
                given=self.name,
                found="the file was changed while its rows were in use",
                instead="the same command again, with a file that stays as it is",
            )
        return data

    def blocks(self) -> Iterator[LineBlock]:
        """All of it, in blocks of whole lines."""
        start, line = (len(BOM) if self.read(0, len(BOM)) == BOM else 0), 1
        while data := self.read(start, BLOCK, whole_line=True):
            lines = data.count(b"\n") + (not data.endswith(b"\n"))
            yield LineBlock(file=self, start=start, data=data, line=line, lines=lines)
            start, line = start + len(data), line + lines
