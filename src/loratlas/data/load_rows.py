"""Files, folders, Hub data sets and Python objects become rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loratlas.data.records.check_records import RecordCheck, look_over
from loratlas.data.records.line_files import LineFile
from loratlas.data.records.row_forms import (
    RowReader,
    fields_read,
    form_of,
    forms_in_words,
    map_columns,
    named,
)
from loratlas.data.records.source_records import Records, source_records
from loratlas.data.records.split_spec import SplitSpec
from loratlas.data.records.stored_rows import StoredRows
from loratlas.data.rows import Rows
from loratlas.errors import DataError, printable


def load_rows(
    source: Any,
    *,
    split: str | None = None,
    mapping: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> Rows:
    """Read rows from a local file, the Hub, or what is already in memory.

    Args:
        source: a JSON, JSONL, CSV or Parquet file (also ``.gz``), a folder of them, a Hub id (``owner/name`` or
            ``owner/name:config``), a `datasets.Dataset` or `DatasetDict`, or a list of dicts.
        split: as `datasets` writes it: ``train``, ``test``, ``train[:1000]``. Without it: ``train``, or the
            only one.
        mapping: field of a form → column of the source, ``{"prompt": "question"}``.
        limit: keep only the first so many rows; no more are read.

    Returns:
        Rows that lie in a file and are made when they are asked for, so that memory does not grow with them.

    Raises:
        DataError: no such file or data set, broken JSON (with its line), a missing field (with its row), a
            label that is neither a class number nor a word, an empty file, or a form that is none of
            `loratlas.data.records.row_forms.FORMS`.

    >>> rows = load_rows([{"prompt": "2+2", "completion": 4}])
    >>> rows.form, rows.rows[0].turns[1].content
    ('prompt', '4')
    """
    if limit is not None and limit < 1:
        raise DataError(
            given=f"a limit of {limit} rows", found="no row left", instead="a limit of at least 1"
        )
    if isinstance(source, Rows):
        return source if limit is None else replace(source, rows=source.rows[:limit])
    mapping = mapping or {}
    name, spec = _name(source), SplitSpec(split)
    first = None if spec.is_sliced else limit

    def wanted(columns: tuple[str, ...]) -> list[str]:
        fields = map_columns(columns, mapping, name)
        read = set(fields_read(form_of(fields, name), fields).values())
        return [column for column in columns if column in read]

    records = source_records(source, name, spec, wanted, first)
    check, reader = _looked_over(records, mapping, name, first)
    spans = spec.spans(_sizes(records, check))
    spans = spans if limit is None else _first_rows(spans, limit)
    if not sum(map(len, spans)):
        raise DataError(given=name, found="no rows in it", instead=f"a file with rows of {forms_in_words()}")
    rows = StoredRows(check.blocks, check.rows, reader, spans)
    shown = f"{name} [{split}]" if split else name
    return Rows(rows=rows, form=reader.form, source=shown, remarks=_remarks(check, reader, records))


def _name(source: Any) -> str:
    if isinstance(source, (str, Path)):
        return str(source)
    return f"a {type(source).__name__} of {len(source):,} rows" if hasattr(source, "__len__") else "rows"


def _looked_over(
    records: Records, mapping: Mapping[str, str], source: str, limit: int | None
) -> tuple[RecordCheck, RowReader]:
    """Check all records against the form that their columns, also those that come late, ask for."""
    columns = records.columns or tuple(_first(records.files, source))
    while True:
        fields = map_columns(columns, mapping, source)
        form = form_of(fields, source)
        reader = RowReader(
            form=form,
            columns=fields_read(form, fields),
            source=source,
            blank="a blank cell in column" if records.is_text else "missing field",
            classes=records.classes,
        )
        check = look_over(records.files, reader, limit=limit)
        if not check.rows:
            raise DataError(given=source, found="an empty file", instead="a file with at least one row")
        seen = tuple(dict.fromkeys((*columns, *check.columns)))
        fields = map_columns(seen, mapping, source)
        if form_of(fields, source) == form and fields_read(form, fields) == reader.columns:
            return check, _with_labels(check, reader, records)
        columns = seen


def first_record(source: Any, *, split: str | None = None) -> Mapping[str, Any]:
    """The first record as it is written, column → value: what a source looks like before its form is decided.

    Args:
        source, split: as for `load_rows`.

    Raises:
        DataError: no such file or data set, an empty file, or broken JSON.

    >>> dict(first_record([{"chosen": "4", "rejected": "5"}]))
    {'chosen': '4', 'rejected': '5'}
    """
    name, spec = _name(source), SplitSpec(split)
    return _first(source_records(source, name, spec, list, None if spec.is_sliced else 1).files, name)


def _first(files: Sequence[LineFile], source: str) -> Mapping[str, Any]:
    look = RecordCheck(RowReader(form="text", columns={}, source=source))
    for file in files:
        for block in file.blocks():
            for record in look.records(block):
                return record
    raise DataError(given=source, found="an empty file", instead="a file with at least one row")


def _with_labels(check: RecordCheck, reader: RowReader, records: Records) -> RowReader:
    """Refuse labels of which some are numbers and some are words; text that only holds whole numbers is numbers."""
    kinds = check.label_kinds
    if "number" in kinds and len(kinds) > 1:
        (first, row), (second, other) = sorted(kinds.values(), key=lambda kind: kind[1])[:2]
        raise DataError(
            given=reader.source,
            found=f"labels of two kinds: {_label(first)} on row {row + 1}, {_label(second)} on row {other + 1}",
            instead="numbers or words, not both",
        )
    if not records.is_text or set(kinds) != {"digits"}:
        return reader
    reader = reader.with_numbers()
    for label, index in check.labels.items():
        reader.row({reader.columns["text"]: "", reader.columns["label"]: label}, index)
    return reader


def _label(label: int | str) -> str:
    return repr(label) if isinstance(label, int) else repr(printable(label))


def _remarks(check: RecordCheck, reader: RowReader, records: Records) -> tuple[str, ...]:
    remarks = list(records.remarks)
    read = set(reader.columns.values())
    unread = [f"{printable(name, 60)} ({n:,} rows)" for name, n in check.columns.items() if name not in read]
    unread += [printable(name, 60) for name in records.not_read]
    if unread:
        remarks.append(f"columns that form {reader.form!r} does not read: {named(unread)}")
    if check.unknown:
        keys = [f"{printable(key, 60)} ({n:,} messages)" for key, n in check.unknown.items()]
        remarks.append(f"keys of messages that only a chat template can know: {named(keys)}")
    folded: dict[str, int | str] = {}
    for label in check.labels:
        other = folded.setdefault(str(label).strip().casefold(), label)
        if other != label:
            remarks.append(f"labels that differ in case or spaces alone: {_label(other)}, {_label(label)}")
            break
    return tuple(remarks)


def _sizes(records: Records, check: RecordCheck) -> dict[str, int]:
    """Split → rows of its files."""
    sizes = dict.fromkeys(records.splits or ("train",), 0)
    split_of = {id(file): split for file, split in zip(records.files, records.splits, strict=False)}
    ends = [*(block.first for block in check.blocks[1:]), check.rows]
    for block, end in zip(check.blocks, ends, strict=True):
        sizes[split_of.get(id(block.file), "train")] += end - block.first
    return sizes


def _first_rows(spans: Sequence[range], limit: int) -> list[range]:
    """The first so many rows of spans."""
    kept: list[range] = []
    for span in spans:
        kept.append(span[:limit])
        limit -= len(kept[-1])
    return kept
