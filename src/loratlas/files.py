"""Folders that are whole or not there: written beside their place, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loratlas.errors import OutputError, StorageError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


@contextmanager
def whole_folder(out: Path, *, marker: str) -> Iterator[Path]:
    """A temporary folder that becomes ``out`` when the block ends well, and vanishes when it does not.

    Args:
        out: where it shall lie. An empty folder, or one that holds ``marker``, is replaced.
        marker: name of a file that tells what this writes from other things.

    Raises:
        OutputError: ``out`` holds something else, or cannot be made.
        StorageError: the disk was full or became read-only.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / marker).exists())):
        raise OutputError(
            given=str(out), found="something else lies there", instead="a new folder, or one of the same kind"
        )
    beside = out.parent / f".{out.name}.{os.getpid()}.new"
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        yield beside
        _swap(beside, out)
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
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _swap(new: Path, out: Path) -> None:
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
