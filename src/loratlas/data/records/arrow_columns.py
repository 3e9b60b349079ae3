"""Columns of Parquet and of the Hub, written out as JSON by the type that they declare."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import uuid
from collections.abc import Callable, Iterable, Iterator
from json.encoder import encode_basestring
from typing import Any

from loratlas.errors import DataError, printable

CANNOT = "as a text, a number, a date, a list or a struct"


def arrow_lines(batches: Iterable[Any], columns: list[str], source: str) -> Iterator[bytes]:
    """Rows of record batches as JSON lines.

    Texts are kept, whole and decimal numbers keep their digits, fractions are written with the fewest digits that
    mean the same number of their type; dates and times become ISO 8601, bytes the UTF-8 text that they are.

    Args:
        batches: `pyarrow.RecordBatch` or `pyarrow.Table` objects.
        columns: the columns to write.
        source: for errors.

    Raises:
        DataError: bytes that are no text, with row and column, or a type that has no text.
    """
    row = 0
    names = [encode_basestring(name) for name in columns]
    for batch in batches:
        cells = [_cells(batch.column(name), name, row, source) for name in columns]
        for values in zip(*cells, strict=True):
            pairs = ", ".join(f"{name}: {cell}" for name, cell in zip(names, values, strict=True))
            yield f"{{{pairs}}}\n".encode()
        row += batch.num_rows


def _cells(column: Any, name: str, first: int, source: str) -> list[str]:
    """JSON of every cell of a column."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        return _cells(column.cast(kind.value_type), name, first, source)
    if isinstance(kind, pa.BaseExtensionType):
        column = _storage(column)
        return _cells(column, name, first, source)
    write = _writer(kind)
    if write is None:
        raise DataError(
            given=source,
            found=f"column {printable(name)!r} holds {printable(str(kind))}, which cannot be read {CANNOT}",
            instead="another column for this field (--map FIELD=COLUMN), or the column written as text",
        )
    try:
        return ["null" if value is None else write(value) for value in _values(column)]
    except UnicodeDecodeError as error:
        row = next(index for index in range(len(column)) if not _is_text(column[index], write))
        raise DataError(
            given=source,
            found=f"bytes that are no UTF-8 text in column {printable(name)!r} on row {first + row + 1}",
            instead="a column of texts",
        ) from error


def _is_text(scalar: Any, write: Callable[[Any], str]) -> bool:
    try:
        value = scalar.as_py()
        return value is None or bool(write(value))
    except UnicodeDecodeError:
        return False


def _storage(column: Any) -> Any:
    import pyarrow as pa

    if not isinstance(column, pa.ChunkedArray):
        return column.storage
    return pa.chunked_array([chunk.storage for chunk in column.chunks], type=column.type.storage_type)


def _values(column: Any) -> list[Any]:
    """Python values; times as the text that Arrow writes, for Python knows no nanoseconds."""
    import pyarrow as pa

    if pa.types.is_temporal(column.type):
        return column.cast(pa.string()).to_pylist()
    return column.to_pylist()


def _writer(kind: Any) -> Callable[[Any], str] | None:
    """How a value of an Arrow type is written as JSON; None for a type that has no text."""
    import pyarrow as pa

    types = pa.types
    for holds, write in (
        (types.is_string, encode_basestring),
        (types.is_large_string, encode_basestring),
        (types.is_string_view, encode_basestring),
        (types.is_boolean, lambda value: "true" if value else "false"),
        (types.is_integer, str),
        (types.is_float32, lambda value: _fraction(value, bits=32)),
        (types.is_float16, lambda value: _fraction(value, bits=16)),
        (types.is_floating, _fraction),
        (types.is_decimal, lambda value: format(value, "f")),
        (types.is_date, encode_basestring),
        (types.is_time, lambda value: encode_basestring(_short(value))),
        (types.is_timestamp, lambda value: encode_basestring(_short(value.replace(" ", "T", 1)))),
        (types.is_null, lambda _: "null"),
        (types.is_nested, lambda value: json.dumps(bare(value), ensure_ascii=False, default=nested)),
    ):
        if holds(kind):
            return write
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return lambda value: encode_basestring(value.decode("utf-8"))
    return None


def _short(time: str) -> str:
    """A time without zeros behind its seconds.

    >>> _short("2020-01-02T03:04:05.000000Z"), _short("03:04:05.120")
    ('2020-01-02T03:04:05Z', '03:04:05.12')
    """
    head, dot, tail = time.partition(".")
    digits = tail[: len(tail) - len(tail.lstrip("0123456789"))]
    kept = digits.rstrip("0")
    return head + (f".{kept}" if kept else "") + tail[len(digits) :] if dot else time


def _fraction(value: float, *, bits: int = 64) -> str:
    """The fewest digits that mean this number in its own precision.

    >>> _fraction(0.1), _fraction(0.10000000149011612, bits=32), _fraction(float("-inf"))
    ('0.1', '0.1', '-Infinity')
    """
    import numpy as np

    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return str({16: np.float16, 32: np.float32, 64: np.float64}[bits](value))


def bare(value: Any) -> Any:
    """A nested value without its nulls: Arrow gives every struct of a column every key of any of them."""
    if isinstance(value, dict):
        return {key: bare(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [bare(item) for item in value]
    return value


def nested(value: Any) -> Any:
    """What JSON has no word for, inside a list or a struct or in a list of dicts."""
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (decimal.Decimal, uuid.UUID)):
        return str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return value.item()  # a number of numpy
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no text")
