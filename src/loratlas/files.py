"""The one place that writes: files and folders are whole or not there, numbers become JSON.

Whatever is written stands under a draft's name first (``.NAME.PID.part``, beside where it will lie) and is then
renamed. A process that is killed between any two operations leaves the old content, the new one, or a draft; drafts of
processes that are gone are removed by the next write of that name.

>>> import tempfile
>>> folder = Path(tempfile.mkdtemp())
>>> write_json(folder / "a.json", {"loss": float("nan"), "path": folder / "b"})
>>> (folder / "a.json").read_text().splitlines()[1]
' "loss": null,'
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loratlas.errors import OutputError, StorageError

_LEFTOVER = re.compile(r"\.(.+)\.(\d+)\.(part|old)")
"""``.NAME.PID.part`` is what a process is writing, ``.NAME.PID.old`` a folder that it is replacing."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG})


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Within this context what the operating system says about a disk becomes an error with the path.

    Raises:
        StorageError: the disk is full, read-only or forbidden. What was written before stays.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            given=str(path),
            found=f"it could not be written ({error.strerror or error})",
            instead="room and write permission there; files finished earlier are untouched",
        ) from error


@contextmanager
def draft(path: Path) -> Iterator[Path]:
    """A path to write a file to; it becomes ``path`` when the block ends well, and vanishes when it does not.

    Args:
        path: of the file, which is replaced. Its folder is made where there is none.

    Raises:
        StorageError: see `storing`.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "table"
    >>> with draft(path) as unfinished:
    ...     _ = unfinished.write_text("whole")
    >>> path.read_text(), [entry.name for entry in path.parent.iterdir()]
    ('whole', ['table'])
    """
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, path.name)
        unfinished = draft_name(path)
        try:
            yield unfinished
            _sync(unfinished)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with draft(path) as unfinished:
        unfinished.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all; half surrogate pairs, which UTF-8 cannot hold, become ``?``."""
    write_bytes(path, text.encode("utf-8", "replace"))


def write_json(path: Path, value: Any) -> None:
    """Write data as JSON (see `jsonable`), whole or not at all."""
    write_text(path, json.dumps(jsonable(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, *, most: int | None = None) -> Any:
    """What a JSON file says.

    Args:
        path: of a file in UTF-8.
        most: bytes that it may have.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger, or not readable as JSON; brackets without end are among the reasons.
    """
    if most is not None and path.stat().st_size > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return parse_json(path.read_bytes())


def parse_json(raw: bytes) -> Any:
    """What bytes of JSON in UTF-8 say.

    Raises:
        ValueError: they are none; brackets without end are among the reasons.
    """
    try:
        return json.loads(raw.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("brackets within brackets without end") from error


@contextmanager
def whole_folder(out: Path, *, marker: str | None) -> Iterator[Path]:
    """A temporary folder that becomes ``out`` when the block ends well, and vanishes when it does not.

    Args:
        out: where it shall lie. An empty folder, or one that holds ``marker``, is replaced.
        marker: name of a file that distinguishes what this writes from other things; None for a folder that only
            loratlas writes, which is replaced whatever it holds.

    Raises:
        OutputError: ``out`` holds something else, or cannot be made.
        StorageError: the disk was full or became read-only.
    """
    with storing(out) if marker is None else _asked_for(out):
        remove_leftovers(out.parent, out.name)
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
        if taken and marker is not None and not (out / marker).exists():
            raise OutputError(
                given=str(out),
                found="something else is there",
                instead="a new folder, or one of the same kind",
            )
        unfinished = draft_name(out)
        try:
            unfinished.mkdir(parents=True)
            yield unfinished
            _put_in_place(unfinished, out)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def cache_folder() -> Path:
    """``LORATLAS_CACHE``, or loratlas' folder in the user's cache."""
    asked = os.environ.get("LORATLAS_CACHE")
    if asked:
        return Path(asked)
    from platformdirs import user_cache_path

    return user_cache_path("loratlas", appauthor=False)


@contextmanager
def built_folder(out: Path) -> Iterator[Path]:
    """The path of a folder that others make in the block; when it ends well, the folder becomes ``out``.

    Other than in `whole_folder`, what fails in the block need not be about writing, and is passed on as it is.

    Args:
        out: where it shall lie; new, or replaced whatever it holds.

    Raises:
        OutputError, StorageError: ``out`` cannot be written.

    >>> import tempfile
    >>> out = Path(tempfile.mkdtemp()) / "out"
    >>> with built_folder(out) as new:
    ...     write_text(new / "a.txt", "whole")
    >>> [path.name for path in out.iterdir()], [path.name for path in out.parent.iterdir()]
    (['a.txt'], ['out'])
    """
    with _asked_for(out):
        remove_leftovers(out.parent, out.name)
    around = draft_name(out)
    new = around / "new"
    try:
        yield new
        with _asked_for(out):
            _put_in_place(new, out)
    finally:
        shutil.rmtree(around, ignore_errors=True)


def _put_in_place(made: Path, out: Path) -> None:
    """Let a finished folder take a name, its files on the disk."""
    for file in made.rglob("*"):
        if file.is_file():
            _sync(file)
    _exchange(made, out)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove drafts that killed processes left in a folder; what they were replacing is put back.

    Between the two renames that replace a folder its name is missing and the old folder has a draft's name: it gets its
    own name back.

    Args:
        folder: where to look, not below it.
        name: of the file or folder whose drafts are meant; None for all.
    """
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        match = _LEFTOVER.fullmatch(entry.name)
        if match is None or name not in (None, match[1]) or _is_running(int(match[2])):
            continue
        whole = folder / match[1]
        if match[3] == "old" and not whole.exists():
            entry.rename(whole)
        elif entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def was_left(out: Path) -> bool:
    """Whether a process that is gone left a draft of this folder or file: what lies there now, it had just finished."""
    beside = out.parent.iterdir() if out.parent.is_dir() else ()
    matches = [match for entry in beside if (match := _LEFTOVER.fullmatch(entry.name)) is not None]
    return any(match[1] == out.name and not _is_running(int(match[2])) for match in matches)


def is_leftover(path: Path) -> bool:
    """Whether a name is that of a draft, which counts as nothing where a folder has to be empty."""
    return _LEFTOVER.fullmatch(path.name) is not None


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """16 hex digits over plain data, whatever the order of its keys.

    >>> digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def jsonable(value: Any) -> Any:
    """Data that JSON has words for: tuples become lists, NaN and infinities None, paths text, NumPy's numbers numbers.

    >>> jsonable({"a": (1, float("nan")), 2: Path("b")})
    {'a': [1, None], '2': 'b'}
    """
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(jsonable(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    return str(value)


@contextmanager
def _asked_for(out: Path) -> Iterator[None]:
    """As `storing`, for a place that somebody named: one that is forbidden was the wrong request."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(
                given=str(out), found=f"{error.strerror}", instead="room on that disk, then the same command"
            ) from error
        raise OutputError(
            given=str(out),
            found=f"it cannot be written: {error.strerror or error}",
            instead="a folder with write permission",
        ) from error


def draft_name(path: Path) -> Path:
    """The name under which this process writes what will be ``path``."""
    return path.parent / f".{path.name}.{os.getpid()}.part"


def _exchange(new: Path, out: Path) -> None:
    """Put a folder where another may lie; the other one is put back if that fails."""
    old = out.parent / f".{out.name}.{os.getpid()}.old"
    if out.exists():
        out.rename(old)
    try:
        new.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Ask the disk for the bytes, so that a name never stands for less than was written."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        os.fsync(file.fileno())


def _is_running(process: int) -> bool:
    if process == os.getpid():
        return False  # a draft of this very process that an earlier failure left
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
