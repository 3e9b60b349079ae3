"""CSV: every cell is the string that stands in the file. No types, no index column, no word that means nothing."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from loratlas.errors import DataError, printable


@contextmanager
def _any_length() -> Iterator[None]:
    """Cells of any length; `csv` has one limit for the whole process."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def csv_header(text: Iterable[str], source: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The names of the columns, and then the rows with the number of the line on which each ends.

    Args:
        text: the file, in lines as `line_end` says.
        source: what the user wrote, for errors.

    Raises:
        DataError: no header, a column without a name, or two of one name.
    """
    reader = csv.reader(text, strict=True)
    header = _next(reader, source, 0)
    while header == []:
        header = _next(reader, source, 0)
    if header is None:
        raise DataError(given=source, found="an empty file", instead="a header line and at least one row")
    known: set[str] = set()
    for number, name in enumerate(header, start=1):
        if not name.strip():
            raise DataError(
                given=source,
                found=f"column {number} of {len(header)} has no name in the header",
                instead="a header line that names every column",
            )
        if name in known:
            raise DataError(
                given=source,
                found=f"the header names the column {printable(name)!r} twice",
                instead="a header line in which every name stands once",
            )
        known.add(name)
    return header, _rows(reader, source)


def _next(reader: Iterator[list[str]], source: str, row: int) -> list[str] | None:
    try:
        with _any_length():
            return next(reader, None)
    except csv.Error as error:
        raise DataError(
            given=source,
            found=f"broken CSV in {f'row {row}' if row else 'the header'} ({_why(error)})",
            instead="cells with commas, quotes or line breaks in double quotes, and quotes in them doubled",
        ) from error
    except UnicodeDecodeError as error:
        where = f"row {row}" if row else "the header"
        raise DataError(
            given=source, found=f"bytes that are no UTF-8, in or near {where}", instead="a UTF-8 file"
        ) from error


def _why(error: csv.Error) -> str:
    # Python's words speak to a programmer.
    return "a carriage return outside of quotes" if "new-line" in str(error) else str(error)


def line_end(start: bytes) -> str:
    r"""The character that ends the lines of a file: a line feed, or a carriage return where there is no other.

    Lines that end in both end in the line feed. Elsewhere a lone carriage return is a part of a cell.

    >>> line_end(b"a\r\n"), line_end(b"a\rb\r")
    ('\n', '\r')
    """
    return "\r" if b"\r" in start and b"\n" not in start else "\n"


def _rows(reader: Iterator[list[str]], source: str) -> Iterator[tuple[int, list[str]]]:
    number = 1
    while (cells := _next(reader, source, number)) is not None:
        yield reader.line_num, cells  # type: ignore[attr-defined]
        number += bool(cells)


def csv_lines(
    header: Sequence[str], rows: Iterable[tuple[int, list[str]]], source: str, limit: int | None = None
) -> Iterator[bytes]:
    """Rows as JSON lines; a blank cell is null.

    Args:
        header: names of the columns.
        rows: from `csv_header`.
        source: for errors.
        limit: rows that are read; None for all.

    Raises:
        DataError: a row with more or fewer cells than the header.
    """
    number, blank = 0, None
    for line, cells in rows:
        if number == limit:
            return
        if not cells and len(header) > 1:
            continue  # an empty line, which holds no cell
        if not cells:
            blank = blank or (number + 1, line)  # in one column, a blank cell, unless nothing follows
            continue
        number += 1
        if blank is not None:
            raise DataError(
                given=source,
                found=f"a blank cell in column {printable(header[0])!r} on row {blank[0]} (line {blank[1]})",
                instead="a text in every cell, or a file without empty lines",
            )
        if len(cells) != len(header):
            kind = "more" if len(cells) > len(header) else "fewer"
            raise DataError(
                given=source,
                found=f"{len(cells)} cells on row {number} (line {line}), {kind} than the {len(header)} columns "
                f"of the header ({', '.join(map(printable, header[:10]))})",
                instead="one cell per column; a cell with a comma in it stands in double quotes",
            )
        record = {name: cell if cell else None for name, cell in zip(header, cells, strict=True)}
        yield json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n"
