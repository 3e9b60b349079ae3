"""Tables of losses on disk: Parquet with zstd, each file whole or not there, its bytes verified when it is read.

A folder of tables holds ``digests.json`` with the SHA-256 of each. A table whose bytes are others is refused. Folders
of versions before 0.2 have no digests; their tables are read as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loratlas.errors import DataError
from loratlas.evaluation.tokens import COLUMNS, OPTIONAL, SEGMENTS, Tokens
from loratlas.files import digest, draft, read_json, sha256, write_json

EXAMPLES, TOKENS, DIGESTS = "examples.parquet", "tokens.parquet", "digests.json"
SCHEMA = "loratlas.digests"


def write_table(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Write a small table, whole or not at all.

    Raises:
        StorageError, OutputError: the disk is full or not writable.
    """
    import pyarrow as pa
    from pyarrow import parquet

    with draft(path) as unfinished:
        parquet.write_table(pa.table(dict(columns)), unfinished, compression="zstd")


def write_digests(folder: Path, names: tuple[str, ...], **more: Any) -> None:
    """Write ``digests.json`` over files of a folder: what makes the folder complete.

    Args:
        folder: with those files in it.
        names: of the files.
        more: anything else that is kept with the digests; plain data.
    """
    digests = {name: sha256(folder / name) for name in names}
    content = {"schema": SCHEMA, "version": 1, "sha256": digests, **more}
    write_json(folder / DIGESTS, {**content, "own": digest(content)})


def read_digests(folder: Path) -> dict[str, Any] | None:
    """What ``digests.json`` says; None where there is no such file.

    Raises:
        DataError: it is damaged.
    """
    path = folder / DIGESTS
    if not path.exists():
        return None
    try:
        digests = read_json(path)
        if digests["schema"] != SCHEMA or digests["version"] != 1 or digests.pop("own") != digest(digests):
            raise ValueError("its content is not what was written")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            given=str(path), found=f"damaged digests ({error})", instead="the folder as it was written"
        ) from error
    return digests


def check_digest(path: Path) -> None:
    """Refuse a table whose bytes are not those that were written, where its folder has digests.

    Raises:
        DataError: other bytes, or a table that the digests do not name.
    """
    digests = read_digests(path.parent)
    if digests is None:
        return
    known = digests["sha256"].get(path.name)
    if known is None or known != sha256(path):
        raise DataError(
            given=str(path),
            found="its bytes are not those that were written (SHA-256 differs)"
            if known
            else f"{DIGESTS} in its folder does not list it",
            instead="the folder as it was written, or the command that wrote it once more",
        )


def arrow_schema() -> Any:
    """Columns of ``tokens.parquet``."""
    import pyarrow as pa

    return pa.schema(
        [
            ("example", pa.int32()),
            ("position", pa.int32()),
            ("segment", pa.dictionary(pa.int8(), pa.string())),
            ("counted", pa.bool_()),
            ("nll", pa.float32()),
            ("uniform", pa.float32()),
            ("error", pa.float32()),
        ]
    )


def arrow_table(tokens: Tokens) -> Any:
    """Scored tokens as an Arrow table of `arrow_schema`."""
    import pyarrow as pa

    def column(name: str) -> Any:
        values = getattr(tokens, name)
        if values is None:
            return pa.nulls(len(tokens), pa.float32())
        if name == "segment":
            return pa.DictionaryArray.from_arrays(pa.array(values, pa.int8()), list(SEGMENTS))
        return values.astype(np.float32, copy=False) if name == "nll" else values

    return pa.table([column(name) for name in COLUMNS], schema=arrow_schema())


def read_columns(folder: Path, name: str, columns: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Columns of a table as arrays.

    Raises:
        DataError: no such file, not Parquet, other bytes than were written, or a column missing.
    """
    path = folder / name
    table = _open(path)
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise DataError(
            given=str(path), found=f"no column {missing[0]}", instead="a table that loratlas wrote"
        )
    return {column: table[column].to_numpy() for column in columns}


def read_tokens(folder: Path, *, counted_only: bool = False) -> Tokens:
    """The table of tokens in a folder, by example and position.

    Tables of version 0.1 are read too: one without ``counted`` holds counted tokens alone.

    Args:
        folder: that `loratlas eval --out` or `Scores.write` left.
        counted_only: leave out prompts, special tokens and padding.

    Raises:
        DataError: see `read_columns`.
    """
    path = folder / TOKENS
    table = _open(path)
    return tokens_of(table, path, counted_only=counted_only)


def tokens_of(table: Any, path: Path, *, counted_only: bool = False) -> Tokens:
    """An Arrow table as scored tokens; ``path`` is for errors only.

    Raises:
        DataError: a column is missing, or names an unknown segment.
    """
    needed = ("example", "position", "segment", "nll")
    missing = [column for column in needed if column not in table.column_names]
    if missing:
        raise DataError(
            given=str(path), found=f"no column {missing[0]}", instead="a table that loratlas wrote"
        )
    segment = table["segment"].combine_chunks()
    segment = segment if hasattr(segment, "dictionary") else segment.dictionary_encode()
    words = segment.dictionary.to_pylist()
    strange = [word for word in words if word not in SEGMENTS]
    if strange:
        raise DataError(
            given=str(path), found=f"the segment {strange[0]!r}", instead="a table that loratlas wrote"
        )
    codes = np.array([SEGMENTS.index(word) for word in words], dtype=np.int8)
    columns: dict[str, Any] = {
        "example": table["example"].to_numpy(),
        "position": table["position"].to_numpy(),
        "segment": codes[segment.indices.to_numpy()] if len(segment) else np.zeros(0, np.int8),
        "nll": table["nll"].to_numpy(),
        "counted": table["counted"].to_numpy()
        if "counted" in table.column_names
        else np.ones(len(table), dtype=bool),
    }
    for name in OPTIONAL:
        values = table[name].to_numpy() if name in table.column_names else None
        columns[name] = None if values is None or (len(values) and np.isnan(values).all()) else values
    tokens = Tokens(**columns)
    return (tokens[tokens.counted] if counted_only else tokens).sorted()


def _open(path: Path) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    if path.exists():
        check_digest(path)
    try:
        return parquet.read_table(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        first = str(error).strip().splitlines()
        raise DataError(
            given=str(path),
            found=f"no readable table ({first[0][:200] if first else type(error).__name__})",
            instead="a folder that `loratlas eval --out` wrote",
        ) from error
