"""The ledger: every run of a study, in optuna's own SQLite storage, so that optuna's dashboard opens it.

One trial is one run. Its parameters are arm, learning rate, seed and phase; its value is the token mean
on the rows it was judged on; the attribute ``record`` holds the rest. Only the coordinator writes. That
there is one
coordinator is secured by a lock on a file that the operating system takes back from a dead process:
optuna's own claim of trials hands some out twice when several processes ask SQLite at once.
"""

from __future__ import annotations

import errno
import math
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from loratlas.errors import OutputError, StorageError
from loratlas.files import digest, draft, write_text
from loratlas.study.execution.ledger_entries import check_pages, opened, readable, with_digest

NAME = "ledger.db"
CLAIM, HOLDER = "claim.lock", "claim.txt"
"""What is locked, and who holds it."""

_LOCKLESS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})
STUDY = "loratlas"


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Key:
    """Which run.

    Args:
        phase: "base" (the bare model, once), "tuning" or "evaluation".
        arm: name of the arm; "" for the base.
        lr: learning rate; 0 for the base.
        seed: what draws order, subset, initialisation and dropout; 0 for the base.
        steps: of the run, where it has others than the study's; 0: it has those.
    """

    phase: str
    arm: str = ""
    lr: float = 0.0
    seed: int = 0
    steps: int = 0

    def to_json(self) -> dict[str, Any]:
        whole = {"phase": self.phase, "arm": self.arm, "lr": self.lr, "seed": self.seed}
        return whole | ({"steps": self.steps} if self.steps else {})


@contextmanager
def claim(out: Path) -> Iterator[None]:
    """Hold the folder for one coordinator.

    Raises:
        OutputError: another live process holds it; the error says which.
    """
    from filelock import FileLock, Timeout

    path = out / CLAIM
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(
            given=str(out),
            found=f"this study is being run by {_holder(out)}",
            instead="waiting for it, or another --out",
        ) from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _LOCKLESS:
            raise unwritable(path, error) from error
        raise OutputError(
            given=str(out),
            found=f"a file system that cannot lock files ({error})",
            instead="--out on a local disk",
        ) from error
    try:
        write_text(out / HOLDER, f"process {os.getpid()} on {platform.node()}")
        yield
    finally:
        lock.release()


def _holder(out: Path) -> str:
    try:
        return (out / HOLDER).read_text(encoding="utf-8").strip() or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"


def unwritable(path: Path, error: OSError) -> OutputError:
    """The error for a folder in which nothing can be written."""
    return OutputError(
        given=str(path), found=error.strerror or str(error), instead="a folder that you may write to"
    )


def unstorable(what: str, error: BaseException) -> StorageError:
    """The error for a disk that became full or read-only on the way."""
    return StorageError(
        given=what,
        found=f"it could not be written ({getattr(error, 'strerror', None) or error})",
        instead="room and write permission on that disk, then the same command: finished runs are kept",
    )


class Ledger:
    """The runs of one study folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ledger = Ledger.open(Path(folder))
    ...     number = ledger.begin(Key(phase="tuning", arm="full", lr=1e-3, seed=7), {"plan": "ab"})
    ...     ledger.finish(number, value=2.5, record={"nll": 2.5})
    ...     ledger.finished()[Key(phase="tuning", arm="full", lr=1e-3, seed=7)]["nll"]
    2.5
    """

    def __init__(self, study: Any, path: Path) -> None:
        self._study = study
        self._path = path
        self._storage = study._storage

    @classmethod
    def open(cls, out: Path, *, create: bool = True) -> Self:
        """Open the ledger of a folder.

        Raises:
            OutputError: there is none and none is to be created, or the file is no ledger.
        """
        import optuna
        from sqlalchemy.exc import DatabaseError

        path = out / NAME
        if not create and not path.exists():
            raise OutputError(
                given=str(out),
                found=f"no {NAME} in it",
                instead="the folder that `loratlas study --out` wrote",
            )
        optuna.logging.set_verbosity(optuna.logging.ERROR)

        def study_in(file: Path) -> Any:
            storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
            return optuna.create_study(
                study_name=STUDY, storage=storage, direction="minimize", load_if_exists=True
            )

        try:
            if path.exists():
                check_pages(path)
            else:  # a process that is killed here leaves no half of a ledger
                with draft(path) as unfinished:
                    made = study_in(unfinished)._storage
                    made.remove_session()
                    made._backend.engine.dispose()
            study = study_in(path)
        except DatabaseError as error:
            raise OutputError(
                given=str(path), found=f"no ledger that can be opened ({error.orig})", instead="another --out"
            ) from error
        return cls(study, path)

    @property
    def about(self) -> dict[str, Any]:
        """What holds for the whole study: spec, base, data, plans, machine, versions."""
        with readable(self._path):
            return {name: opened(name, value) for name, value in self._study.user_attrs.items()}

    def note(self, **about: Any) -> None:
        """Write attributes of the whole study."""
        with _stored():
            for name, value in about.items():
                self._study.set_user_attr(name, with_digest(name, value))

    def begin(self, key: Key, identity: Mapping[str, Any]) -> int:
        """Enter a run that starts now; returns its trial number."""
        import optuna
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        trial = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params=key.to_json(),
            distributions={
                # One domain for all trials: optuna refuses a parameter whose categories change.
                "phase": CategoricalDistribution(["base", "tuning", "evaluation"]),
                "arm": CategoricalDistribution(["", *self.about.get("arms", [key.arm])]),
                "lr": FloatDistribution(0.0, 1e308),
                "seed": IntDistribution(0, 2**53),
                **({"steps": IntDistribution(0, 2**53)} if key.steps else {}),
            },
            user_attrs={"key": key.to_json(), "identity": dict(identity)},
        )
        with _stored():
            return self._storage.create_new_trial(self._study._study_id, template_trial=trial)

    def finish(self, trial: int, *, value: float, record: Mapping[str, Any]) -> None:
        """Close a run with its result; a diverged one has the value infinity."""
        import optuna

        with _stored():
            key = self._storage.get_trial(trial).user_attrs["key"]
            self._storage.set_trial_user_attr(trial, "record", with_digest(_name_of(key), record))
            self._storage.set_trial_state_values(
                trial, optuna.trial.TrialState.COMPLETE, [value if math.isfinite(value) else math.inf]
            )

    def requeue(self) -> int:
        """Close the runs that a dead coordinator left open; they will be done again. Returns how many."""
        import optuna

        with readable(self._path):
            left = self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
        with _stored():
            for trial in left:
                self._storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.FAIL)
        return len(left)

    def abandon(self, trial: int) -> None:
        """Close a run that was stopped before its end."""
        import optuna

        with _stored():
            self._storage.set_trial_state_values(trial, optuna.trial.TrialState.FAIL)

    def finished(self) -> dict[Key, dict[str, Any]]:
        """Key → record of every finished run, in the order of keys; of two for one key, the one that was done again."""
        import optuna

        records: dict[Key, dict[str, Any]] = {}
        with readable(self._path):
            for trial in self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
                key = trial.user_attrs["key"]
                records[Key(**key)] = opened(_name_of(key), trial.user_attrs["record"])
            return dict(sorted(records.items()))


def _name_of(key: Mapping[str, Any]) -> str:
    """What the digest of a run's record covers besides the record."""
    return digest(dict(key))


@contextmanager
def _stored() -> Iterator[None]:
    """SQLite's complaints about the disk as ours."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import OperationalError

    try:
        yield
    except (OperationalError, StorageInternalError) as error:
        raise unstorable("the study's ledger", error.__cause__ or error) from error
