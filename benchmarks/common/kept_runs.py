"""Runs that a bench has trained, a line each in a file, so that the same command goes on where it was stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


class KeptRuns:
    """Runs by what they are.

    Args:
        path: of the file. names: of the fields that say what a run is.
        until: by the monotonic clock; no run is begun later.
    """

    def __init__(self, path: Path, names: Sequence[str], *, until: float = float("inf")) -> None:
        self.path, self.names, self.until = path, names, until
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.known = {self._key(record): record for record in map(json.loads, lines)}

    def _key(self, record: Mapping[str, Any]) -> str:
        return json.dumps([record[name] for name in self.names])

    def get(self, run: Mapping[str, Any], train: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """A run with what came out of it, trained if it is not there.

        Raises:
            TimeoutError: it is not there, and the time is over.
        """
        key = self._key(run)
        if key not in self.known:
            if time.monotonic() > self.until:
                raise TimeoutError
            record = {**run, **train()}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            self.known[key] = record
        return self.known[key]
