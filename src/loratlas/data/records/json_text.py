"""JSON files: one object per line as they are; a list of objects, or one object over many lines, as lines."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from typing import Any

from loratlas.data.records.line_files import BLOCK, LineFile
from loratlas.data.records.literals import DECODER, plain
from loratlas.errors import DataError

ONE_OBJECT = 64 << 20
"""Bytes up to which a file may be one object over many lines."""


def json_lines(file: LineFile, limit: int | None = None) -> LineFile:
    """A file with one object per line, whichever way the objects were written.

    Args:
        file: JSON or JSONL.
        limit: objects of a list that are read; None for all.

    Raises:
        DataError: a list that breaks, with its line, or that holds something else than objects.
    """
    for block in file.blocks():
        start = block.data.lstrip()
        if start[:1] == b"[":
            return LineFile.written(_list(file, limit), file.name)
        if start[:1] == b"{" and not _is_json(start.split(b"\n", 1)[0]):
            return _one_object(file)
        if start:
            break
    return file


def _is_json(line: bytes) -> bool:
    try:
        DECODER.decode(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return False
    return True


def _one_object(file: LineFile) -> LineFile:
    """The file as one line if it is one object; else as it is, and its first line will be found broken."""
    blocks = [block.data for block, _ in zip(file.blocks(), range(ONE_OBJECT // BLOCK), strict=False)]
    try:
        text = b"".join(blocks).decode("utf-8")
        DECODER.decode(text)
    except (ValueError, RecursionError):
        return file
    return LineFile.written([_one_line(text).encode("utf-8")], file.name)


def _one_line(text: str) -> str:
    # No text in JSON holds a line break as it is, so that these stand between the tokens.
    return text.replace("\n", " ").replace("\r", " ")


def _characters(file: LineFile) -> Iterator[str]:
    decode = codecs.getincrementaldecoder("utf-8")().decode
    for block in file.blocks():
        try:
            yield decode(block.data)
        except UnicodeDecodeError as error:
            raise DataError(
                given=file.name,
                found=f"bytes that are no UTF-8 after line {block.line}",
                instead="a UTF-8 file",
            ) from error


def _list(file: LineFile, limit: int | None) -> Iterator[bytes]:
    """The objects of a list, one line each, of which few are in memory at a time."""
    text = _Window(_characters(file), file.name)
    text.take("[")
    number = 0
    while text.peek() != "]" or number == 0:
        if text.peek() == "]":
            raise DataError(given=file.name, found="an empty list", instead="a file with at least one row")
        if number == limit:
            return
        if number:
            text.take(",")
        number += 1
        value, written = text.value()
        if not isinstance(value, dict):
            raise DataError(
                given=file.name,
                found=f"row {number} is a {type(plain(value)).__name__}, not an object",
                instead="a list of objects",
            )
        yield _one_line(written).encode("utf-8") + b"\n"
    text.take("]")
    if text.peek():
        raise text.broken("text after the end of the list")


def _may_go_on(error: json.JSONDecodeError, text: str) -> bool:
    """Whether the error may only be that the text was cut: it lies at the end, or a string has none."""
    return error.msg.startswith("Unterminated string") or error.pos >= len(text) - 16


class _Window:
    """A stretch of a long text that moves on as it is read."""

    def __init__(self, chunks: Iterable[str], name: str) -> None:
        self._chunks, self._name = iter(chunks), name
        self._text, self._at, self._line = "", 0, 1

    def _more(self) -> bool:
        chunk = next(self._chunks, None)
        if chunk is None:
            return False
        self._line += self._text.count("\n", 0, self._at)
        self._text, self._at = self._text[self._at :] + chunk, 0
        return True

    def broken(self, what: str, at: int | None = None) -> DataError:
        line = self._line + self._text.count("\n", 0, self._at if at is None else at)
        return DataError(
            given=self._name, found=f"broken JSON on line {line} ({what})", instead="one list of objects"
        )

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in " \t\r\n":
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def take(self, mark: str) -> None:
        if self.peek() != mark:
            raise self.broken(f"{mark!r} is missing")
        self._at += 1

    def value(self) -> tuple[Any, str]:
        """The next value, and as it was written."""
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
            except RecursionError as error:
                raise self.broken("nested too deeply") from error
            except json.JSONDecodeError as error:
                had = len(self._text) - self._at
                if not (_may_go_on(error, self._text) and self._more()):
                    raise self.broken(error.msg, error.pos) from error
                # Twice as much each time, so that one long object is not read over and over.
                while len(self._text) < 2 * had and self._more():
                    pass
                continue
            written = self._text[self._at : end]
            self._at = end
            return value, written
