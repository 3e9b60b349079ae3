"""Looking records over: every one is sound and becomes a row, or a sentence says which does not and why.

A block whose records are plain (texts where texts belong, the same keys) is checked by `msgspec` against the types that
its form allows, at a few hundred nanoseconds a record. Any other block is read record by record, which finds the line,
the row and the field. The quick way decides nothing but that the slow one would have found nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any, Literal

import msgspec

from loratlas.data.records.line_files import Block, LineFile
from loratlas.data.records.literals import STRICT, DoubledKeys
from loratlas.data.records.literals import Literal as Digits
from loratlas.data.row_forms import FORMS, WHOLE_NUMBER, RowReader
from loratlas.data.stored_rows import StoredBlock
from loratlas.errors import DataError, printable

OBJECTS = 'one object per line, as {"instruction": …, "output": …}'

QUICK_COLUMNS = 200
"""Columns up to which records are checked the quick way."""

KINDS_OF_LABELS = 1000
"""Different labels that are kept for remarks."""


class _Message(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | int | float | bool


_TEXT = str | int | float | bool
_MESSAGES = "messages"


class RecordCheck:
    """What was seen of the records of a source so far.

    Args:
        reader: what a record is to become.

    Attributes:
        columns: column → records that have a value in it.
        unknown: key of a message that no rule knows → messages that carry it.
        labels: the labels, up to a number of different ones.
        label_kinds: of labels: whether class numbers were seen, words, and words that are no whole number.
        blocks, rows: what was looked over.
    """

    def __init__(self, reader: RowReader) -> None:
        self.reader = reader
        self.columns: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        self.labels: dict[int | str, int] = {}
        self.label_kinds: dict[str, tuple[int | str, int]] = {}
        self.blocks: list[StoredBlock] = []
        self.rows = 0
        self._quick: _Quick | None = None

    def look_over(self, block: Block, limit: int | None = None) -> None:
        """Check a block, at most up to a number of rows in all.

        Raises:
            DataError: a record that is broken or becomes no row, with line or row.
        """
        first, lines = self.rows, _lines(block.data)
        fits = limit is None or self.rows + lines <= limit
        taken = self._quick.take(block.data, lines, self) if self._quick and fits else None
        if taken is None:
            for record in islice(self.records(block), None if limit is None else limit - self.rows):
                self._take(record, self.rows)
                self.rows += 1
            if self._quick is None or self.columns.keys() - self._quick.columns:
                self._quick = _Quick.of(self.reader, list(self.columns))
        else:
            self.rows += taken
        if self.rows > first:
            self.blocks.append(
                StoredBlock(file=block.file, start=block.start, size=len(block.data), first=first)
            )

    def records(self, block: Block) -> Iterator[dict[str, Any]]:
        """Records of a block one by one.

        Raises:
            DataError: one is broken, with its line.
        """
        file = block.file
        for number, line in enumerate(block.data.split(b"\n"), start=block.line):
            if not line.strip():
                continue
            where = f"line {number}" if file.lines_are_rows else f"row {self.rows + 1}"
            try:
                text = line.decode("utf-8").strip()
                record = STRICT.decode(text)
            except UnicodeDecodeError as error:
                raise DataError(
                    given=file.name, found=f"bytes that are no UTF-8 on {where}", instead="a UTF-8 file"
                ) from error
            except json.JSONDecodeError as error:
                raise DataError(
                    given=file.name,
                    found=f"broken JSON on {where} ({error.msg} at character {error.pos + 1})",
                    instead=OBJECTS,
                ) from error
            except RecursionError as error:
                raise DataError(
                    given=file.name, found=f"JSON nested too deeply on {where}", instead=OBJECTS
                ) from error
            except DoubledKeys as error:
                raise DataError(
                    given=file.name,
                    found=f"the key {printable(error.key)!r} twice in one object on row {self.rows + 1}",
                    instead="objects in which every key stands once",
                ) from error
            if not isinstance(record, dict):
                kind = "number" if isinstance(record, Digits) else type(record).__name__
                raise DataError(
                    given=file.name, found=f"{where} holds a {kind}, not an object", instead=OBJECTS
                )
            if "\\ud" in text or "\\uD" in text:
                self.reader.check_characters(record, self.rows)
            yield record

    def _take(self, record: Mapping[str, Any], index: int) -> None:
        self.columns.update(column for column, value in record.items() if value is not None)
        self.columns.update(dict.fromkeys(record, 0))
        row = self.reader.row(record, index, self.unknown)
        if row.label is not None:
            self.see_label(row.label, index)

    def see_label(self, label: int | str, index: int) -> None:
        """Note what kind of label stands on a row."""
        kind = "number" if isinstance(label, int) else "digits" if WHOLE_NUMBER.fullmatch(label) else "word"
        self.label_kinds.setdefault(kind, (label, index))
        if len(self.labels) < KINDS_OF_LABELS:
            self.labels.setdefault(label, index)


class _Quick:
    """Types of the columns of a source, for a check in one call.

    Args:
        reader: its form says what may stand in a column that is read.
        columns: all columns seen so far.
    """

    def __init__(self, reader: RowReader, columns: Sequence[str]) -> None:
        self.columns = set(columns)
        needed = {reader.columns[field]: field for field in FORMS[reader.form]}
        if "text_pair" in reader.columns:
            needed[reader.columns["text_pair"]] = "text_pair"
        read = {column: field for field, column in reader.columns.items()}
        self._needed = {column: f"f{at}" for at, column in enumerate(columns) if column in needed}
        self._others = {column: f"f{at}" for at, column in enumerate(columns) if column not in needed}
        self._label = next(
            (self._needed[c] for c, field in needed.items() if field == "label" and c in self._needed), None
        )
        self._talks = [
            self._needed[c]
            for c, field in needed.items()
            if field in (_MESSAGES, "prompt", "completion") and c in self._needed
        ]
        self._reader = reader
        talk = list[_Message]
        types: dict[str, Any] = {_MESSAGES: talk, "label": int | str}
        types |= {"prompt": _TEXT | talk, "completion": _TEXT | talk}
        fields: list[Any] = []
        for at, column in enumerate(columns):
            if column in needed:
                fields.append((f"f{at}", types.get(needed[column], _TEXT)))
            elif column in read:
                kind = _TEXT | None if read[column] in ("input", "system") else None
                fields.append(
                    (f"f{at}", kind | msgspec.UnsetType if kind else msgspec.UnsetType | None, msgspec.UNSET)
                )
            else:
                fields.append((f"f{at}", Any, msgspec.UNSET))
        record = msgspec.defstruct(
            "Record",
            fields,
            rename={f"f{at}": column for at, column in enumerate(columns)},
            forbid_unknown_fields=True,
            kw_only=True,
            gc=False,
        )
        self._decode = msgspec.json.Decoder(record).decode_lines

    @classmethod
    def of(cls, reader: RowReader, columns: Sequence[str]) -> _Quick | None:
        """The check for these columns; None where their names or number are beyond it."""
        named = all(name.isprintable() and not {'"', "\\"} & set(name) for name in columns)
        return cls(reader, columns) if named and len(columns) <= QUICK_COLUMNS else None

    def take(self, data: bytes, lines: int, check: RecordCheck) -> int | None:
        """Records of a block if all of them are plain; None where the slow way has to look."""
        try:
            records = self._decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
            return None
        count = len(records)
        if count != lines:
            return None  # empty lines, or records that do not stand on a line each
        if any(data.count(_key(column)) != count for column in self._needed):
            return None  # a key that stands twice in an object, or spelled in another way
        talks = [
            talk for name in self._talks for record in records if type(talk := getattr(record, name)) is list
        ]
        said = sum(map(len, talks))
        if talks and (not all(talks) or data.count(b'"role"') != said or data.count(b'"content"') != said):
            return None
        if self._label is not None and not self._take_labels(records, check):
            return None
        check.columns.update(dict.fromkeys(self._needed, count))
        for column, name in self._others.items():
            absent = sum(value is None or value is msgspec.UNSET for value in map(attrgetter(name), records))
            check.columns[column] += count - absent
        return count

    def _take_labels(self, records: Sequence[Any], check: RecordCheck) -> bool:
        labels: dict[int | str, int] = {}
        for index, record in enumerate(records, start=check.rows):
            labels.setdefault(getattr(record, self._label or ""), index)
        classes = self._reader.classes
        for label in labels:
            if isinstance(label, str) and (self._reader.numbers or not label.strip()):
                return False
            if isinstance(label, int) and not 0 <= label < (10**18 if classes is None else classes):
                return False
        for label, index in labels.items():
            check.see_label(label, index)
        return True


def _lines(data: bytes) -> int:
    return data.count(b"\n") + (not data.endswith(b"\n"))


def _key(column: str) -> bytes:
    return json.dumps(column, ensure_ascii=False).encode("utf-8", "surrogatepass")


def look_over(files: Sequence[LineFile], reader: RowReader, *, limit: int | None = None) -> RecordCheck:
    """Check all records of a source, or its first ones.

    Raises:
        DataError: see `RecordCheck.look_over`.
    """
    check = RecordCheck(reader)
    for file in files:
        for block in file.blocks():
            check.look_over(block, limit)
            if limit is not None and check.rows >= limit:
                return check
    return check
