"""The folder of a training run: ``run.json``, written last, holds the SHA-256 of every other file that is a result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loratlas.errors import ModelError
from loratlas.sealed_json import ChangedError, read_sealed, write_sealed

RUN = "run.json"
_RESULTS = ("adapter/*", "eval/*", "*.json")
"""Not the checkpoint, which holds digests of its own and goes with the next run, and not the logs of trackers."""


def write_run_json(out: Path, numbers: Mapping[str, Any]) -> None:
    """Write ``run.json`` over all files of a run that are results.

    Args:
        out: the run's folder, everything else in it as it stays.
        numbers: what was measured; plain data.
    """
    found = {path for pattern in _RESULTS for path in out.glob(pattern) if path.is_file()}
    names = [path.relative_to(out).as_posix() for path in found if not path.name.startswith(".")]
    write_sealed(out / RUN, numbers, files=[name for name in names if name != RUN])


def read_run_json(out: Path) -> dict[str, Any] | None:
    """What ``run.json`` says, after every file that it knows was compared; None where there is no such file.

    A run that was stopped has none yet, and files that were removed since are not missed.

    Raises:
        ModelError: it, or a file of the run, is not what was written.
    """
    path = out / RUN
    if not path.is_file():
        return None
    try:
        return read_sealed(path)
    except (ChangedError, OSError) as error:
        raise ModelError(
            given=str(path),
            found=str(error)[:300],
            instead="the folder as it was written, or the adapter alone: " + str(out / "adapter"),
        ) from error
