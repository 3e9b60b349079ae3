"""JSON files that hold the SHA-256 of themselves and of files beside them, so that one flipped bit is found.

The digest of a file's own bytes is taken with 64 zeros in its place. Files without digests, which earlier versions
wrote, are read as they are; a file that has only one of the two keys was changed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from loratlas.files import jsonable, parse_json, sha256, write_text

SEAL, FILES = "seal", "sha256"

_ZEROS = "0" * 64
_SEAL = re.compile(rb'"seal": "([0-9a-f]{64})"')


class ChangedError(ValueError):
    """A file is not what was written; its message says how."""


def write_sealed(path: Path, document: Mapping[str, Any], *, files: Iterable[str] = ()) -> None:
    """Write data as JSON, whole or not at all, with the digests of files and of itself.

    Args:
        path: of the file.
        document: plain data.
        files: paths below its folder, whose digests are kept.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.json"
    >>> write_sealed(path, {"loss": 1.5})
    >>> read_sealed(path)
    {'loss': 1.5}
    >>> _ = path.write_text(path.read_text().replace("1.5", "1.4"))
    >>> read_sealed(path)
    Traceback (most recent call last):
    loratlas.sealed_json.ChangedError: another content than was written: its SHA-256 differs
    """
    digests = {name: sha256(path.parent / name) for name in sorted(files)}
    write_text(path, sealed({**document, FILES: digests}))


def sealed(document: Mapping[str, Any]) -> str:
    """Plain data as JSON with its own digest at the end."""
    whole = {**jsonable(document), SEAL: _ZEROS}
    text = json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    before, _, after = text.rpartition(_ZEROS)  # the last one: the data may hold such a text too
    return before + digest + after


def read_sealed(path: Path, *, beside: bool = True) -> dict[str, Any]:
    """What a file says, without its digests.

    Args:
        path: of a file that `write_sealed` wrote, or of JSON without digests.
        beside: compare the files whose digests it holds, as far as they are there.

    Raises:
        ChangedError: it is no JSON object, or it or a file beside it is not what was written.
        OSError: it cannot be read.
    """
    document, digests = open_seal(path.read_bytes())
    for name, known in (digests or {}).items() if beside else ():
        file = path.parent / name
        if file.is_file() and sha256(file) != known:
            raise ChangedError(
                f"{name} in its folder has another content than was written: its SHA-256 differs"
            )
    return document


def open_seal(raw: bytes) -> tuple[dict[str, Any], dict[str, str] | None]:
    """What a file says, and the digests of the files beside it; None where it holds no digests.

    Raises:
        ChangedError: it is no JSON object, or not what was written.
    """
    try:
        document = parse_json(raw)
    except ValueError as error:
        raise ChangedError(f"no readable JSON ({str(error)[:100]})") from error
    if not isinstance(document, dict):
        raise ChangedError("no JSON object")
    if SEAL not in document and not isinstance(document.get(FILES), dict):
        return document, None
    check_seal(raw, document)
    digests = document.pop(FILES)
    del document[SEAL]
    return document, digests


def check_seal(raw: bytes, document: Mapping[str, Any]) -> None:
    """Compare a file's bytes with the digest that it holds.

    Args:
        raw: its bytes. document: what they say.

    Raises:
        ChangedError: there is none, or it differs.
    """
    seals = list(_SEAL.finditer(raw))
    if not seals or document.get(SEAL) != seals[-1][1].decode() or not isinstance(document.get(FILES), dict):
        raise ChangedError("no digest of itself")
    start, end = seals[-1].span(1)
    if hashlib.sha256(raw[:start] + _ZEROS.encode() + raw[end:]).hexdigest() != document[SEAL]:
        raise ChangedError("another content than was written: its SHA-256 differs")
