"""Entries of a ledger with the digest of each, and a damaged ledger as a sentence."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from loratlas.errors import OutputError
from loratlas.files import digest, jsonable
from loratlas.models.quiet import first_line
from loratlas.sealed_json import ChangedError

CONTENT, DIGEST = "loratlas content", "loratlas digest"


def with_digest(name: str, value: Any) -> dict[str, Any]:
    """An entry as it is stored: its value, and a digest of name and value together.

    >>> opened("steps", with_digest("steps", (3, 4)))
    [3, 4]
    """
    plain = json.loads(json.dumps(jsonable(value)))
    return {CONTENT: plain, DIGEST: digest([name, plain])}


def opened(name: str, entry: Any) -> Any:
    """The value of an entry; entries of earlier versions have no digest.

    Raises:
        ChangedError: it is not what was stored under that name.
    """
    if not isinstance(entry, dict) or not {CONTENT, DIGEST} & entry.keys():
        return entry
    if entry.keys() != {CONTENT, DIGEST} or digest([name, entry[CONTENT]]) != entry[DIGEST]:
        raise ChangedError("an entry that is not what was written: its digest differs")
    return entry[CONTENT]


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Whatever a damaged ledger makes of optuna and SQLAlchemy, as a sentence.

    Raises:
        OutputError: something in the block could not be read.
    """
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        raise damaged(path, first_line(error)) from error


def check_pages(path: Path) -> None:
    """Compare the tables of a SQLite file with their indices.

    Raises:
        OutputError: they differ, or it is no such file.
    """
    try:
        with closing(sqlite3.connect(path)) as connection:
            found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
        raise OutputError(
            given=str(path), found=f"no ledger that can be opened ({error})", instead="another --out"
        ) from error
    if found != "ok":
        raise damaged(path, str(found)[:200])


def damaged(path: Path, found: str) -> OutputError:
    """The error for a ledger that is not what was written."""
    return OutputError(
        given=str(path),
        found=f"a damaged ledger ({found})",
        instead="the folder as it was written, or another --out",
    )
