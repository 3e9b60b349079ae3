"""The folder of an evaluation: written piece by piece, complete at the end, so that a killed one can be continued.

In the order in which they are written:

======================================  ============================================================================
``.unfinished/identity.json``           what is evaluated; unfinished work of another evaluation is discarded
``.unfinished/000000.parquet``, …       row groups of the table of tokens, each whole
``tokens.parquet``, ``….parquet``       the tables
``digests.json``                        identity and SHA-256 of each: the folder is complete
======================================  ============================================================================

and then ``.unfinished`` is removed. A process that is killed between any two of these steps leaves a folder with which
the same evaluation goes on; in a complete folder it finds its result.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loratlas.errors import OutputError
from loratlas.evaluation.loss_files import (
    DIGESTS,
    EXAMPLES,
    TOKENS,
    arrow_schema,
    arrow_table,
    check_digest,
    read_digests,
    tokens_of,
    write_digests,
    write_table,
)
from loratlas.evaluation.tokens import Tokens
from loratlas.files import draft, is_leftover, read_json, remove_leftovers, storing, write_json

UNFINISHED = ".unfinished"
IDENTITY = "identity.json"
OWN = (UNFINISHED, EXAMPLES, TOKENS, "predictions.parquet", DIGESTS)
"""Names that an evaluation leaves in its folder."""


class ResultFolder:
    """Tables of one evaluation.

    Args:
        folder: where they shall lie; made where there is none.
        identity: what is evaluated and how, as plain data.

    Raises:
        OutputError: the folder holds the result of another evaluation, or something else.
        DataError: its ``digests.json`` is damaged.
        StorageError: it cannot be written.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self._folder, self._pieces = folder, folder / UNFINISHED
        self._identity = json.loads(json.dumps(dict(identity)))
        self._kept = read_digests(folder)
        if self._kept is not None and self._kept.get("identity") != self._identity:
            raise OutputError(
                given=str(folder),
                found="the result of another evaluation (other weights, rows or settings)",
                instead="a new folder",
            )
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
            if self._kept is not None:
                shutil.rmtree(self._pieces, ignore_errors=True)
                return
            begun = self._pieces / IDENTITY
            if self._is_mine(begun):
                return
            if not self._pieces.exists():
                self._require_free()
            # While unfinished work lies there, tables beside it are a part of it.
            for name in OWN[1:]:
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(self._pieces, ignore_errors=True)
            write_json(begun, self._identity)

    @property
    def complete(self) -> bool:
        """Whether this very evaluation was finished here before."""
        return self._kept is not None

    def _is_mine(self, begun: Path) -> bool:
        try:
            return read_json(begun) == self._identity
        except (OSError, ValueError):
            return False

    def _require_free(self) -> None:
        entries = sorted(p.name for p in self._folder.iterdir() if not is_leftover(p))
        if entries:
            raise OutputError(
                given=str(self._folder),
                found=f"a folder that already holds {entries[0]}" + (" and more" if len(entries) > 1 else ""),
                instead="a new folder for this result",
            )

    def has(self, index: int, mark: int) -> bool:
        """Whether row group ``index`` is whole and was made of the same examples (``mark``, their digest).

        Raises:
            OutputError: in a complete folder, of other examples.
        """
        from pyarrow import parquet

        if self._kept is not None:
            marks = self._kept.get("marks", [])
            if index < len(marks) and marks[index] == mark:
                return True
            raise OutputError(
                given=str(self._folder), found="the result for other rows", instead="a new folder"
            )
        path = self._path(index)
        try:
            kept = parquet.read_schema(path).metadata or {}
        except (OSError, ValueError):
            return False
        return kept.get(b"mark") == str(mark).encode()

    def write(self, index: int, mark: int, tokens: Tokens) -> None:
        """Write a row group, whole or not at all."""
        from pyarrow import parquet

        table = arrow_table(tokens).replace_schema_metadata({"mark": str(mark)})
        with draft(self._path(index)) as unfinished:
            parquet.write_table(table, unfinished, compression="zstd", row_group_size=max(1, len(table)))

    def read(self, index: int) -> Tokens:
        """A row group that was written before."""
        from pyarrow import parquet

        if self._kept is None:
            return tokens_of(parquet.read_table(self._path(index)), self._path(index))
        path = self._folder / TOKENS
        if index == 0:
            check_digest(path)
        return tokens_of(parquet.ParquetFile(path).read_row_group(index), path)

    def finish(
        self,
        tables: Mapping[str, Mapping[str, np.ndarray]],
        *,
        marks: Sequence[int] | None = None,
    ) -> None:
        """Make the folder complete.

        Args:
            tables: file name → columns.
            marks: of the row groups that were written, which are joined to the table of tokens; None: there is none.

        Raises:
            OutputError: a complete folder, of other rows.
        """
        from pyarrow import parquet

        if self._kept is not None:
            if marks is not None and len(marks) != len(self._kept.get("marks", [])):
                raise OutputError(
                    given=str(self._folder), found="the result for other rows", instead="a new folder"
                )
            return
        names = list(tables)
        if marks is not None:
            names.append(TOKENS)
            with (
                draft(self._folder / TOKENS) as unfinished,
                parquet.ParquetWriter(unfinished, arrow_schema(), compression="zstd") as writer,
            ):
                for index in range(len(marks)):
                    table = parquet.read_table(self._path(index)).cast(arrow_schema())
                    # An empty row group keeps the count, so that `read` finds each by its index.
                    writer.write_table(table, row_group_size=max(1, len(table)))
        for name, columns in tables.items():
            write_table(self._folder / name, columns)
        kept = {"identity": self._identity, "marks": list(marks or ())}
        write_digests(self._folder, tuple(names), **kept)
        with storing(self._folder):
            shutil.rmtree(self._pieces)

    def _path(self, index: int) -> Path:
        return self._pieces / f"{index:06d}.parquet"
