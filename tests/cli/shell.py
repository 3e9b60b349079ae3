"""``loratlas`` in a process of its own, and what a command leaves on its streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What a command left on its streams."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on standard output."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value

    @property
    def words(self) -> str:
        """Standard error with its line breaks taken out, for messages that wrap."""
        return " ".join(self.err.split())


def environment() -> dict[str, str]:
    """The environment of a command in a process of its own: no network, one thread, no debugging."""
    kept = {name: value for name, value in os.environ.items() if name != "LORATLAS_DEBUG"}
    return {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "80"}


def spawn(*words: Any, cwd: Path) -> subprocess.Popen[str]:
    """Start ``loratlas`` in a process group of its own, as a shell does."""
    return subprocess.Popen(
        [sys.executable, "-c", "from loratlas.cli import main; main()", *map(str, words)],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 900) -> Outcome:
    """Wait for a process and read what it left."""
    out, err = process.communicate(timeout=timeout)
    return Outcome(process.returncode, out, err)
