"""A scan's folder: what it has measured so far, so that a stopped scan goes on and ends as if it had not been stopped.

    scan.json                      the result, with the plan
    state/scan.json                which scan this is
    state/trials.json              steps of its trials, where these were shortened
    state/measured.json            scores of the signals that do not train
    state/scores.json              all scores; the trials are gone by then
    state/trial-0/checkpoint/      of `loratlas.training.checkpoint`, with the sums of its loss-change allocation

Where trials stand at different steps, both begin anew: the result is the same, to the bit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loratlas.errors import Interrupted, OutputError
from loratlas.interruption import Stop, asked_by, interruptible
from loratlas.sealed_json import ChangedError, read_sealed, write_sealed
from loratlas.training.checkpoint import FOLDER

STATE = "state"
IDENTITY, MEASURED, SCORES, TRIALS = "scan.json", "measured.json", "scores.json", "trials.json"
SAVE_EVERY = 5
"""Steps of a trial between two checkpoints."""


class ScanFolder:
    """The state of one scan.

    Args:
        out: the folder.
        identity: plain data that another scan would not share.
        resume: go on with what is there.

    Raises:
        OutputError: another scan is there, or one is there and ``resume`` is not set, or a file of it was changed.
        StorageError: it cannot be written.
    """

    def __init__(self, out: Path, *, identity: Mapping[str, Any], resume: bool) -> None:
        self.state = out / STATE
        wanted = json.loads(json.dumps(identity))
        kept = _read(self.state / IDENTITY)
        if kept is not None and not resume:
            raise OutputError(
                given=f"--out {out}", found="an earlier scan", instead="--resume, or another --out"
            )
        if kept is not None:
            different = [name for name in wanted if kept.get(name) != wanted[name]]
            if different:
                name = different[0]
                raise OutputError(
                    given=f"--resume with --out {out}",
                    found=f"another scan: {name} was {kept.get(name)!r}, now {wanted[name]!r}",
                    instead="what it began with, or another --out",
                )
        else:
            shutil.rmtree(self.state, ignore_errors=True)
            write_sealed(self.state / IDENTITY, wanted)
        self.resumed = kept is not None

    @property
    def measured(self) -> dict[str, Any] | None:
        """What was measured before the trials, as plain data."""
        return _read(self.state / MEASURED)

    def keep_measured(self, data: Mapping[str, Any]) -> None:
        """Keep it."""
        write_sealed(self.state / MEASURED, data)

    @property
    def trial_steps(self) -> int | None:
        """Steps of a trial where they were shortened, else None."""
        kept = _read(self.state / TRIALS)
        return kept["steps"] if kept is not None else None

    def shorten(self, steps: int) -> None:
        """Begin the trials anew with fewer steps."""
        for path in self.state.glob("trial-*"):
            shutil.rmtree(path, ignore_errors=True)
        write_sealed(self.state / TRIALS, {"steps": steps})

    @property
    def scores(self) -> dict[str, Any] | None:
        """All scores of a scan that ended, as plain data."""
        return _read(self.state / SCORES)

    def finish(self, data: Mapping[str, Any]) -> None:
        """Keep all scores and remove the trials."""
        write_sealed(self.state / SCORES, data)
        for path in self.state.glob("trial-*"):
            shutil.rmtree(path, ignore_errors=True)

    def trials(self, count: int) -> list[Path]:
        """A folder for each trial."""
        return [self.state / f"trial-{number}" for number in range(count)]


def has_begun(out: Path) -> bool:
    """Whether a scan has kept anything in this folder that another process can go on with."""
    state = out / STATE
    measured = (_read(state / MEASURED) or {}).get("signals")  # without signals besides trials it is empty
    return bool(measured) or (state / SCORES).is_file() or any(map(_last, state.glob("trial-*")))


@contextmanager
def stoppable(folder: ScanFolder | None) -> Iterator[Stop]:
    """Within this context a scan ends between two passes when Ctrl-C or SIGTERM ask for it.

    Args:
        folder: what keeps its state; None: nothing does.

    Raises:
        Interrupted: it was asked for; says what was kept.
    """
    by = None
    with interruptible() as stop:
        try:
            yield stop
        except Interrupted as stopped:
            by = stopped.given
        except KeyboardInterrupt:
            by = asked_by()
    if by is not None:
        kept = folder is not None
        raise Interrupted(
            given=by,
            found="the scan was stopped; "
            + ("its state is kept" if kept else "nothing of it is kept without --out"),
            instead="the same command with --resume" if kept else "the same command, which scans anew",
        )


def go_on(folders: Sequence[Path]) -> int:
    """At which step trials that were stopped go on, 0 where they begin anew.

    They go on only if all stand at the same step: then passes are shared as they would have been.
    """
    steps = {_last(folder) for folder in folders}
    if len(steps) == 1:
        return steps.pop()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _last(folder: Path) -> int:
    """The step of a run's last whole checkpoint; 0 where there is none."""
    return max((int(path.name.partition("-")[2]) for path in (folder / FOLDER).glob("step-*")), default=0)


def _read(path: Path) -> dict[str, Any] | None:
    """Plain data; None where there is no such file.

    Raises:
        OutputError: it is not what was written.
    """
    if not path.is_file():
        return None
    try:
        return read_sealed(path)
    except (ChangedError, OSError) as error:
        raise OutputError(
            given=str(path),
            found=str(error),
            instead="the folder as the scan left it, or another --out",
        ) from error
