"""What one run leaves on disk: ``runs/<digest>/`` with record.json, examples.parquet and curve.parquet.

A folder appears whole or not at all: it is written under another name and renamed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loratlas.errors import OutputError
from loratlas.files import draft, sha256, whole_folder
from loratlas.sealed_json import ChangedError, open_seal, write_sealed

RECORD, EXAMPLES, CURVE = "record.json", "examples.parquet", "curve.parquet"
FILES = "files"
"""Key of an earlier version's record: file name → SHA-256 of the tables beside it."""

NONE = -1
"""What stands for nothing in an array of numbers that are never negative."""

CURVE_COLUMNS = ("step", "nll", "lr", "tokens", "seconds")


def write_run(
    folder: Path,
    record: Mapping[str, Any],
    *,
    examples: Mapping[str, np.ndarray] | None,
    curve: Sequence[Mapping[str, float]],
    tables: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> None:
    """Write a run's folder, whole or not at all.

    Args:
        folder: ``runs/<digest>``; one that is there already is replaced.
        record: plain data.
        examples: columns ``example`` (index), ``n`` (answer tokens), ``nll`` (summed, nats); None if
            diverged.
        curve: points of the training curve.
        tables: file name → columns of what else was measured.
    """
    import pyarrow as pa
    from pyarrow import parquet

    with whole_folder(folder, marker=None) as unfinished:
        if examples is not None:
            parquet.write_table(pa.table(dict(examples)), unfinished / EXAMPLES)
        for name, columns in (tables or {}).items():
            parquet.write_table(pa.table(dict(columns)), unfinished / name)
        points = {name: [point[name] for point in curve] for name in CURVE_COLUMNS}
        parquet.write_table(pa.table(points), unfinished / CURVE)
        write_sealed(unfinished / RECORD, record, files=[path.name for path in unfinished.iterdir()])


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a finished run, or None where there is none that can be read."""
    return _read(folder)[0]


def is_whole(folder: Path, record: Mapping[str, Any] | None = None) -> bool:
    """Whether a finished run's folder holds what was written, to the bit; otherwise the run has to be done again.

    Args:
        folder: of the run.
        record: what the ledger keeps of it; None where it was not entered.

    Returns:
        False too for a run of an earlier version, without a digest of its record, that no ledger knows.
    """
    own, digests, sealed = _read(folder)
    if own is None or (own != record if record is not None else not sealed):
        return False
    try:
        if digests is None:  # written before digests were
            tables = [CURVE] if own.get("diverged") else [CURVE, EXAMPLES]
            return all(table(folder / name) is not None for name in tables)
        return all(sha256(folder / name) == known for name, known in digests.items())
    except (OSError, OutputError):
        return False


def _read(folder: Path) -> tuple[dict[str, Any] | None, Mapping[str, str] | None, bool]:
    """A run's record, the digests of its tables, and whether the record holds one of itself."""
    try:
        record, digests = open_seal((folder / RECORD).read_bytes())
    except (OSError, ChangedError):
        return None, None, False
    return record, record.get(FILES) if digests is None else digests, digests is not None


def read_examples(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(example, n, nll) of a run: int64 [N], int64 [N], float64 [N], in the order of ``example``.

    Raises:
        OutputError: the file is missing or broken.
    """
    columns = table(folder / EXAMPLES)
    example = columns["example"].to_numpy().astype(np.int64)
    order = np.argsort(example, kind="stable")
    return (
        example[order],
        columns["n"].to_numpy().astype(np.int64)[order],
        columns["nll"].to_numpy().astype(np.float64)[order],
    )


def read_curve(folder: Path) -> dict[str, np.ndarray]:
    """Columns of a run's training curve."""
    columns = table(folder / CURVE)
    return {name: columns[name].to_numpy() for name in CURVE_COLUMNS}


def table(path: Path) -> Any:
    """A table of a finished run.

    Raises:
        OutputError: the file is missing or broken.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise OutputError(
            given=str(path),
            found="a file of a finished run that is missing or broken",
            instead="the folder as the study wrote it",
        ) from error


def save_encoded(path: Path, encoded: Any) -> None:
    """Keep encoded rows for the workers: flat arrays and a little JSON in one .npz, no pickle."""
    lengths = np.array([len(example.input_ids) for example in encoded.examples], dtype=np.int64)
    report = encoded.report
    about = {
        "digest": encoded.digest,
        "template": encoded.template,
        "pad_id": encoded.pad_id,
        "source": encoded.source,
        "task": encoded.task.to_json(),
        "report": {name: getattr(report, name) for name in report.__dataclass_fields__},
    }
    with draft(path) as unfinished, unfinished.open("wb") as file:
        np.savez(
            file,
            lengths=lengths,
            rows=np.array([example.row for example in encoded.examples], dtype=np.int64),
            ids=np.concatenate([example.input_ids for example in encoded.examples]),
            labelled=np.concatenate([example.labelled for example in encoded.examples]),
            sources=np.array(
                [NONE if e.source is None else e.source for e in encoded.examples], dtype=np.int64
            ),
            labels=np.array([NONE if e.label is None else e.label for e in encoded.examples], dtype=np.int64),
            types=np.concatenate(
                [np.full(len(e.input_ids), NONE) if e.types is None else e.types for e in encoded.examples]
            ).astype(np.int8),
            about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
        )


def load_encoded(path: Path) -> Any:
    """Read what :func:`save_encoded` kept."""
    from loratlas.data.examples import Encoded, EncodeReport, Example
    from loratlas.models.task import Task

    with np.load(path, allow_pickle=False) as stored:
        ends = np.cumsum(stored["lengths"])[:-1]
        ids, labelled = np.split(stored["ids"], ends), np.split(stored["labelled"], ends)
        about = json.loads(stored["about"].tobytes())
        types = np.split(stored["types"], ends)
        whole = zip(stored["rows"], stored["sources"], stored["labels"], strict=True)
        rest = [(int(row), *(None if n == NONE else int(n) for n in known)) for row, *known in whole]
    return Encoded(
        examples=tuple(
            Example(input_ids=i, labelled=m, row=r, source=s, label=c, types=None if NONE in t else t)
            for i, m, t, (r, s, c) in zip(ids, labelled, types, rest, strict=True)
        ),
        report=EncodeReport(**about["report"]),
        digest=about["digest"],
        template=about["template"],
        pad_id=about["pad_id"],
        source=about["source"],
        task=Task.from_json(about["task"]),
    )
