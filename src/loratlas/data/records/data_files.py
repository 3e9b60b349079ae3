"""One file, or one table with declared columns, as records."""

from __future__ import annotations

import gzip
import io
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from loratlas.data.records.csv_cells import csv_header, csv_lines, line_end
from loratlas.data.records.folder_splits import KINDS, kind_of
from loratlas.data.records.json_text import json_lines
from loratlas.data.records.line_files import BLOCK, LineFile
from loratlas.errors import DataError, printable


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Records of one source, as JSON lines.

    Args:
        files: where they lie, in order.
        splits: the split of each file; none where there are no splits.
        columns: the columns that the source declares; None where only the records say.
        is_text: whether every cell is a string because the format knows nothing else (CSV).
        classes: how many classes the source declares for ``label``.
        not_read: declared columns that were left where they are.
        remarks: what a person should know about the source.
    """

    files: tuple[LineFile, ...]
    splits: tuple[str, ...] = ()
    columns: tuple[str, ...] | None = None
    is_text: bool = False
    classes: int | None = None
    not_read: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


Wanted = Callable[[tuple[str, ...]], list[str]]
"""Of the columns that a source declares, those that a row is made of."""


def file_records(path: Path, source: str, wanted: Wanted, limit: int | None = None) -> Records:
    """Records of one file.

    Args:
        path: of the file.
        source: what the user wrote, for errors.
        wanted: which declared columns are needed.
        limit: records that are needed; None for all.

    Raises:
        DataError: an unknown kind, an empty or unreadable file, or broken CSV, JSON or Parquet.
    """
    kind = kind_of(path)
    if kind is None:
        raise DataError(
            given=source,
            found="a file of unknown kind",
            instead=f"a file named {', '.join(KINDS)} (also .gz)",
        )
    try:
        if path.stat().st_size == 0:
            raise DataError(given=source, found="an empty file", instead="a file with at least one row")
        if kind == "csv":
            return _csv(path, source, limit)
        if kind == "parquet":
            return _parquet(path, source, wanted, limit)
        file = LineFile.open(path, source)
        if path.suffix.lower() == ".gz":
            file = LineFile.written(_unzipped(path), source, lines_are_rows=True)
        return Records(files=(json_lines(file, limit),))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            given=source, found=f"it cannot be read ({printable(str(error))})", instead="a readable file"
        ) from error


def _unzipped(path: Path) -> Iterator[bytes]:
    with gzip.open(path, "rb") as file:
        while data := file.read(BLOCK):
            yield data


def _csv(path: Path, source: str, limit: int | None) -> Records:
    opened: Any = gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb", buffering=0)  # noqa: SIM115 (the next line closes it)
    buffered = io.BufferedReader(opened, BLOCK)
    end = line_end(buffered.peek(BLOCK))
    with io.TextIOWrapper(buffered, encoding="utf-8-sig", newline=end) as text:
        header, rows = csv_header(text, source)
        lines = LineFile.written(csv_lines(header, rows, source, limit), source)
    return Records(files=(lines,), columns=tuple(header), is_text=True)


def _parquet(path: Path, source: str, wanted: Wanted, limit: int | None) -> Records:
    import pyarrow as pa
    from pyarrow import parquet

    opened: IO[bytes] | Path = path
    if path.suffix.lower() == ".gz":
        opened = io.BytesIO(b"".join(_unzipped(path)))
    try:
        with parquet.ParquetFile(opened) as file:
            batches = file.iter_batches
            return table_records(
                file.schema_arrow, lambda columns: batches(1024, columns=columns), source, wanted, limit
            )
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise DataError(
            given=source,
            found=f"it cannot be read as a table ({printable(' '.join(str(error).split()))})",
            instead="a Parquet file",
        ) from error


def table_records(
    schema: Any,
    batches: Callable[[list[str]], Any],
    source: str,
    wanted: Wanted,
    limit: int | None,
) -> Records:
    """Records of a table with declared columns.

    Args:
        schema: of Arrow.
        batches: columns → record batches with these.
        source, wanted, limit: as for `file_records`.

    Raises:
        DataError: two columns of one name, or a cell that has no text.
    """
    from loratlas.data.records.arrow_columns import arrow_lines

    columns = tuple(schema.names)
    if len(set(columns)) < len(columns):
        twice = Counter(columns).most_common(1)[0][0]
        raise DataError(
            given=source,
            found=f"two columns named {printable(twice)!r}",
            instead="a table in which every column has a name of its own",
        )
    needed = wanted(columns)

    def lines() -> Iterator[bytes]:
        for number, line in enumerate(arrow_lines(batches(needed), needed, source)):
            if number == limit:
                return
            yield line

    return Records(
        files=(LineFile.written(lines(), source),),
        columns=columns,
        classes=_classes(schema, "label" if "label" in needed else None),
        not_read=tuple(name for name in columns if name not in needed),
    )


def _classes(schema: Any, column: str | None) -> int | None:
    """How many classes `datasets` has written into the schema for a column."""
    import json

    kept = (schema.metadata or {}).get(b"huggingface")
    if column is None or kept is None:
        return None
    try:
        features = json.loads(kept)["info"]["features"]
        names = features[column]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return len(names) if features[column].get("_type") == "ClassLabel" else None
