"""``loratlas`` in a process of its own, and what a command leaves on its streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODEL, DATA = "demo:llama-mini", "demo:facts-300"
SCANNED_STUDY = """
name: small
model: base/llama
data: {train: "demo:facts-300", eval: "demo:facts-300", limit: 80}
arms: {full: "q@0:1", scanned: "scan"}
reference: full
learning_rates: [0.003]
tuning: {seeds: 1, rows: 8, extensions: 0}
evaluation: {seeds: 2, rows: 20}
steps: 40
batch_size: 2
max_length: 48
demonstration: true
"""
"""A study whose second arm a scan places, on a base of random weights."""


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
