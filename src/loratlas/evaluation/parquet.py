"""Tables of losses on disk: Parquet, zstd, each file whole or not there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loratlas.errors import DataError
from loratlas.files import draft, draft_name, storing

EXAMPLES, TOKENS = "examples.parquet", "tokens.parquet"

SEGMENTS = ("answer", "prompt", "padding", "special")
"""What kind of token a row of the table is about; `score` writes the counted ones."""

GROUP = 1 << 17
"""Rows held before a row group of the table of tokens is written."""


def write_examples(folder: Path, **columns: np.ndarray) -> None:
    """Write ``examples.parquet`` atomically."""
    write_table(folder / EXAMPLES, columns)


def write_table(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Write a small table atomically."""
    import pyarrow as pa
    from pyarrow import parquet

    with draft(path) as unfinished:
        parquet.write_table(pa.table(dict(columns)), unfinished, compression="zstd")


def write_tokens(folder: Path, tokens: Any) -> None:
    """Write a whole table of tokens atomically."""
    writer = TokenWriter(folder)
    try:
        writer.write(tokens)
        writer.finish()
    finally:
        writer.abandon()


class TokenWriter:
    """Writes ``tokens.parquet`` part by part under another name, and gives it its name when it is whole."""

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self._path, self._draft = folder / TOKENS, draft_name(folder / TOKENS)
        self._schema = pa.schema(
            [
                ("example", pa.int32()),
                ("position", pa.int32()),
                ("segment", pa.dictionary(pa.int8(), pa.string())),
                ("nll", pa.float32()),
            ]
        )
        self._held: list[Any] = []
        self._rows = 0
        with storing(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = parquet.ParquetWriter(self._draft, self._schema, compression="zstd")

    def write(self, tokens: Any) -> None:
        """Add rows: any object with the columns as arrays."""
        self._held.append(tokens)
        self._rows += len(tokens.nll)
        if self._rows >= GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._held:
            return
        joined = {name: np.concatenate([getattr(t, name) for t in self._held]) for name in self._schema.names}
        segment = pa.DictionaryArray.from_arrays(pa.array(joined["segment"], pa.int8()), list(SEGMENTS))
        table = pa.table(
            [joined["example"], joined["position"], segment, joined["nll"]],
            schema=self._schema,
        )
        with storing(self._path):
            self._writer.write_table(table)
        self._held, self._rows = [], 0

    def finish(self) -> None:
        """The table is whole."""
        self._flush()
        with storing(self._path):
            self._writer.close()
            self._draft.replace(self._path)

    def abandon(self) -> None:
        """Remove what is unfinished; nothing after `finish`."""
        if self._draft.exists():
            self._writer.close()
            self._draft.unlink(missing_ok=True)


def read_columns(folder: Path, name: str, columns: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Columns of a table as arrays; segments as indices into `SEGMENTS`.

    Raises:
        DataError: no such file, not Parquet, or a column missing.
    """
    import pyarrow as pa
    from pyarrow import parquet

    path = folder / name
    try:
        table = parquet.read_table(path, columns=list(columns))
    except (OSError, pa.ArrowException) as error:
        first = str(error).strip().splitlines()
        raise DataError(
            given=str(path),
            found=f"no readable table ({first[0][:200] if first else type(error).__name__})",
            instead="a folder that `loratlas eval --out` wrote",
        ) from error
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise DataError(
            given=str(path), found=f"no column {missing[0]}", instead="a table that loratlas wrote"
        )
    found = {column: table[column] for column in columns}
    return {
        column: _codes(values) if column == "segment" else values.to_numpy()
        for column, values in found.items()
    }


def _codes(values: Any) -> np.ndarray:
    return np.array([SEGMENTS.index(text) for text in values.to_pylist()], dtype=np.int8)
