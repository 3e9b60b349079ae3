"""Looking records over: every one is sound and becomes a row, or a sentence says which does not and why.

Blocks of plain records are looked over at once (`loratlas.data.records.plain_records`); any other is read record by
record, which names the line, the row and the field.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from loratlas.data.records.line_files import LineBlock, LineFile
from loratlas.data.records.literals import STRICT, Literal, doubled_key
from loratlas.data.records.plain_records import PlainRecords
from loratlas.data.records.row_forms import WHOLE_NUMBER, RowReader
from loratlas.data.records.stored_rows import StoredBlock
from loratlas.errors import DataError, printable

OBJECTS = 'one object per line, as {"instruction": …, "output": …}'

KINDS_OF_LABELS = 1000
"""Different labels that are kept for remarks."""


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
        self._quick: PlainRecords | None = None

    def look_over(self, block: LineBlock, limit: int | None = None) -> None:
        """Check a block, at most up to a number of rows in all.

        Raises:
            DataError: a record that is broken or becomes no row, with line or row.
        """
        first = self.rows
        fits = limit is None or first + block.lines <= limit
        seen = self._quick.seen(block.data, block.lines) if self._quick and fits else None
        if seen is not None:
            self.columns.update(seen.columns)
            for label, index in seen.labels.items():
                self.see_label(label, first + index)
            self.rows += block.lines
        else:
            for record in islice(self.records(block), None if limit is None else limit - first):
                self._take(record, self.rows)
                self.rows += 1
            if self._quick is None or self.columns.keys() - self._quick.columns:
                self._quick = PlainRecords.of(self.reader, list(self.columns))
        if self.rows > first:
            self.blocks.append(
                StoredBlock(file=block.file, start=block.start, size=len(block.data), first=first)
            )

    def records(self, block: LineBlock) -> Iterator[dict[str, Any]]:
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
            if not isinstance(record, dict):
                kind = "number" if isinstance(record, Literal) else type(record).__name__
                raise DataError(
                    given=file.name, found=f"{where} holds a {kind}, not an object", instead=OBJECTS
                )
            twice = doubled_key(record, self.reader.columns.values())
            if twice is not None:
                raise DataError(
                    given=file.name,
                    found=f"the key {printable(twice)!r} twice in one object on row {self.rows + 1}",
                    instead="objects in which every key stands once",
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
