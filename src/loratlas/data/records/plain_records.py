"""A quick look at many records: whether all of them are so plain that reading them one by one would find nothing.

`msgspec` reads a block against the types that its form allows, at a few hundred nanoseconds a record. What does not fit
is no error: it is looked at record by record. So this decides nothing about rows, only that there is nothing to say
about them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import msgspec

from loratlas.data.records.row_forms import FORMS, RowReader

MOST_COLUMNS = 200
"""Columns up to which the quick look is worth its set-up."""


class _Message(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | int | float | bool


_TEXT = str | int | float | bool
_TALK = list[_Message]
_UNSET = msgspec.UnsetType


_VALUE = str | int | float | bool | list[Any] | dict[str, Any]


class _Kind(NamedTuple):
    """What a block may differ in.

    Args:
        talk: lists of messages may stand where texts may.
        even: every record has a value in every column that is not read.
    """

    talk: bool
    even: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSummary:
    """What a block of plain records holds.

    Args:
        columns: column → records that have a value in it.
        labels: the labels → the first record that has it, from 0.
    """

    columns: dict[str, int]
    labels: dict[int | str, int]


class PlainRecords:
    """The types that records of a source have where all is plain.

    Args:
        reader: its form says what may stand in a column that is read.
        columns: all columns seen so far.
    """

    def __init__(self, reader: RowReader, columns: Sequence[str]) -> None:
        self.columns = frozenset(columns)
        self._reader = reader
        self._field_of = {column: field for field, column in reader.columns.items()}
        self._needed = {
            reader.columns[field] for field in (*FORMS[reader.form], "text_pair") if field in reader.columns
        }
        self._names = {column: f"f{at}" for at, column in enumerate(columns)}
        # The fewer differences are allowed, the less is left to look at behind the decoder.
        talks = {"messages": [True], "prompt": [False, True]}.get(reader.form, [False])
        self._kinds = [_Kind(talk, even) for talk in talks for even in (True, False)]
        self._decoders = {kind: self._decoder(kind) for kind in self._kinds}

    @classmethod
    def of(cls, reader: RowReader, columns: Sequence[str]) -> PlainRecords | None:
        """The quick look for these columns; None where their names or their number are beyond it."""
        named = all(name.isprintable() and not {'"', "\\"} & set(name) for name in columns)
        return cls(reader, columns) if named and len(columns) <= MOST_COLUMNS else None

    def _decoder(self, kind: _Kind) -> Any:
        fields: list[Any] = []
        for column, name in self._names.items():
            if column in self._needed:
                fields.append((name, self._needed_type(self._field_of[column], kind.talk)))
            elif kind.even and column not in self._field_of:
                fields.append((name, _VALUE))
            else:
                fields.append((name, self._other_type(column), msgspec.UNSET))
        record = msgspec.defstruct(
            "Record",
            fields,
            rename={name: column for column, name in self._names.items()},
            forbid_unknown_fields=True,
            kw_only=True,
            gc=False,
        )
        return msgspec.json.Decoder(record).decode_lines

    def _needed_type(self, field: str, talk: bool) -> Any:
        if field == "messages":
            return _TALK
        if field == "label":
            return int | str
        return _TEXT | _TALK if talk and field in ("prompt", "completion") else _TEXT

    def _other_type(self, column: str) -> Any:
        field = self._field_of.get(column)
        if field is None:
            return Any
        return _TEXT | None | _UNSET if field in ("input", "system") else None | _UNSET

    def seen(self, data: bytes, lines: int) -> BlockSummary | None:
        """What a block holds if all of it is plain; None where it has to be read record by record.

        Args:
            data: whole lines.
            lines: how many.
        """
        for kind in list(self._kinds):
            try:
                records = self._decoders[kind](data)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
                continue
            self._kinds.remove(kind)
            self._kinds.insert(0, kind)  # what fitted will fit the next block
            return self._counted(records, data, lines, kind)
        return None

    def _counted(self, records: Sequence[Any], data: bytes, lines: int, kind: _Kind) -> BlockSummary | None:
        count = len(records)
        if count != lines:
            return None  # empty lines, or records that do not stand on a line each
        columns = {}
        for column, name in self._names.items():
            stands = count
            if column in self._needed or (kind.even and column not in self._field_of):
                columns[column] = count
            else:
                values = list(map(attrgetter(name), records))
                stands -= values.count(msgspec.UNSET)
                columns[column] = stands - values.count(None)
            if column in self._field_of and data.count(_key(column)) != stands:
                return None  # a key that stands twice in an object, or spelled in another way
        if kind.talk and not self._talks_are_plain(records, data):
            return None
        labels = self._labels(records)
        return None if labels is None else BlockSummary(columns=columns, labels=labels)

    def _talks_are_plain(self, records: Sequence[Any], data: bytes) -> bool:
        names = [self._names[column] for column in self._needed]
        talks = [talk for name in names for talk in map(attrgetter(name), records) if type(talk) is list]
        said = sum(map(len, talks))
        return all(talks) and data.count(b'"role"') == said == data.count(b'"content"')

    def _labels(self, records: Sequence[Any]) -> dict[int | str, int] | None:
        """The labels, if all of them are class numbers or words."""
        if self._reader.form != "label":
            return {}
        labels: dict[int | str, int] = {}
        for index, label in enumerate(map(attrgetter(self._names[self._reader.columns["label"]]), records)):
            labels.setdefault(label, index)
        most = 10**18 if self._reader.classes is None else self._reader.classes
        for label in labels:
            good = 0 <= label < most if isinstance(label, int) else label.strip() and not self._reader.numbers
            if not good:
                return None
        return labels


def _key(column: str) -> bytes:
    return json.dumps(column, ensure_ascii=False).encode()
