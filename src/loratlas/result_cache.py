"""What a config alone decides, kept in the user's cache: computed once, then read without torch or transformers.

An entry is named by a digest of everything that its value depends on, versions included. It holds its name and a
digest of its value; a file that is truncated, changed or about something else counts as none and is written anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import loratlas
from loratlas.errors import StorageError
from loratlas.files import cache_folder, digest, read_json, write_text

SCHEMA = "loratlas.result"

_LIBRARIES = ("transformers", "peft", "torch")
_MOST_ENTRIES = 256
_MOST_BYTES = 2**26


@cache
def versions() -> dict[str, str]:
    """Of what decides results: the libraries, and this package with the state of its files.

    >>> sorted(versions())
    ['files', 'loratlas', 'peft', 'torch', 'transformers']
    """
    root = Path(loratlas.__file__).parent
    states = [
        (str(path.relative_to(root)), (state := path.stat()).st_size, state.st_mtime_ns)
        for path in sorted(root.rglob("*.py"))
    ]
    known = {name: metadata.version(name) for name in _LIBRARIES}
    # A checkout that is worked on keeps its version.
    return known | {"loratlas": loratlas.__version__, "files": digest(states)}


@cache
def machine() -> dict[str, Any]:
    """What results about speed and memory depend on, read without torch: processor, threads and accelerators."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = [platform.processor()]
    kinds = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    asked = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return {
        "processor": digest([platform.machine(), os.cpu_count(), sorted(kinds or set(lines))]),
        "accelerators": sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*")),
        "environment": {name: os.environ.get(name) for name in asked},
    }


def config_text(source: str | Path) -> bytes | None:
    """The bytes of the config that a name stands for, found without any library; None where only a library can.

    Args:
        source: a directory with a ``config.json``, such a file, or a Hub id that has been fetched before.
    """
    path = Path(source)
    if path.is_dir():
        path = path / "config.json"
    elif not path.is_file():
        path = _fetched(str(source)) or path
    try:
        return path.read_bytes() if path.stat().st_size < _MOST_BYTES else None
    except OSError:
        return None


def _fetched(name: str) -> Path | None:
    """Where the Hub's own cache keeps the config of a model, as its main branch was when it was fetched."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    folder = hub / f"models--{name.replace('/', '--')}"
    try:
        commit = (folder / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return folder / "snapshots" / commit / "config.json"


class ResultCache:
    """Values by what they depend on.

    Args:
        kind: of the values, the beginning of their files' names.
        folder: None for a folder in `cache_folder`.

    >>> import tempfile
    >>> known = ResultCache("square", Path(tempfile.mkdtemp()))
    >>> known.get({"number": 3}), known.put({"number": 3}, 9), known.get({"number": 3})
    (None, None, 9)
    """

    def __init__(self, kind: str, folder: Path | None = None) -> None:
        self.kind = kind
        self.folder = folder or cache_folder() / "results"

    def _file(self, key: Mapping[str, Any]) -> tuple[Path, str]:
        name = hashlib.sha256(
            json.dumps([self.kind, dict(key), versions()], sort_keys=True).encode()
        ).hexdigest()
        return self.folder / f"{self.kind}-{name[:32]}.json", name

    def get(self, key: Mapping[str, Any]) -> Any:
        """The value, or None where there is no whole entry for exactly this key."""
        file, name = self._file(key)
        try:
            kept = read_json(file, most=_MOST_BYTES)
        except (OSError, ValueError):
            return None
        if not isinstance(kept, dict) or (kept.get("schema"), kept.get("key")) != (SCHEMA, name):
            return None
        value = kept.get("value")
        return value if kept.get("digest") == digest(value) else None

    def put(self, key: Mapping[str, Any], value: Any) -> None:
        """Keep a value of plain data; where that cannot be written, the next process computes it again."""
        file, name = self._file(key)
        entry = {"schema": SCHEMA, "key": name, "digest": digest(value), "value": value}
        try:
            write_text(file, json.dumps(entry))
            self._prune()
        except (OSError, StorageError):
            return

    def _prune(self) -> None:
        """Drop the entries that were written first, where there are too many."""
        files = sorted(self.folder.glob(f"{self.kind}-*.json"), key=lambda file: file.stat().st_mtime)
        for file in files[: max(len(files) - _MOST_ENTRIES, 0)]:
            file.unlink(missing_ok=True)
