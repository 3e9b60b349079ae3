"""A table of tokens written part by part, so that a pass that was killed goes on where it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loratlas.evaluation.parquet import SEGMENTS, TOKENS
from loratlas.files import storing

FOLDER = ".tokens.parts"
IDENTITY = "identity.json"


class Parts:
    """Row groups of ``tokens.parquet``: each is a file of its own until the table is whole.

    Args:
        folder: where the table will lie.
        identity: what the pass is, as plain data. Parts of another pass that was begun here are discarded; a whole
            table of this very pass is kept (`whole`).
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self._table, self._parts = folder / TOKENS, folder / FOLDER
        self._identity = json.dumps(identity, sort_keys=True)
        self._marks: list[int] = []
        with storing(self._table):
            folder.mkdir(parents=True, exist_ok=True)
            mark = self._parts / IDENTITY
            if mark.exists() and mark.read_text(encoding="utf-8") == self._identity:
                return
            shutil.rmtree(self._parts, ignore_errors=True)
            self._parts.mkdir()
            draft = mark.with_suffix(".draft")
            draft.write_text(self._identity, encoding="utf-8")
            draft.replace(mark)

    def has(self, index: int, mark: int) -> bool:
        """Whether part ``index`` is whole and was made of the same lines (``mark``, their digest)."""
        from pyarrow import parquet

        path = self._path(index)
        if not path.exists():
            return False
        kept = parquet.read_schema(path).metadata or {}
        return kept.get(b"mark") == str(mark).encode()

    def write(self, index: int, mark: int, columns: Mapping[str, np.ndarray]) -> None:
        """Write a part, whole or not at all."""
        import pyarrow as pa
        from pyarrow import parquet

        segment = pa.DictionaryArray.from_arrays(pa.array(columns["segment"], pa.int8()), list(SEGMENTS))
        arrays = [segment if name == "segment" else columns[name] for name in schema().names]
        table = pa.table(arrays, schema=schema()).replace_schema_metadata({"mark": str(mark)})
        path = self._path(index)
        draft = path.with_suffix(".draft")
        with storing(self._table):
            parquet.write_table(table, draft, compression="zstd", row_group_size=max(1, len(table)))
            draft.replace(path)

    def finish(self, count: int) -> None:
        """Join the first ``count`` parts, one row group each, and remove them."""
        from pyarrow import parquet

        draft = self._parts / "whole.draft"
        with storing(self._table):
            with parquet.ParquetWriter(draft, schema(), compression="zstd") as writer:
                for index in range(count):
                    table = parquet.read_table(self._path(index)).cast(schema())
                    writer.write_table(table, row_group_size=max(1, len(table)))
            draft.replace(self._table)
            shutil.rmtree(self._parts)

    def _path(self, index: int) -> Path:
        return self._parts / f"{index:06d}.parquet"


def schema() -> Any:
    """Columns of a per-token table."""
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
