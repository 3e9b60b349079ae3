"""Benchmarks and tools are code that people run: each can be imported, which a move within the package may break."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Scripts of a folder that is run as it lies import each other by their bare names.
ALONE = ("tools/pretrain",)


def modules(folder: str) -> list[str]:
    files = sorted((ROOT / folder).rglob("*.py"))
    inside = [file.relative_to(ROOT) for file in files if not str(file.relative_to(ROOT)).startswith(ALONE)]
    return [
        ".".join(file.with_suffix("").parts).removesuffix(".__init__")
        for file in inside
        if file.stem != "__main__"
    ]


@pytest.mark.parametrize("folder", ["benchmarks", "tools"])
def test_every_script_can_be_imported(folder):
    # In one process of its own: scripts set environment variables and thread counts.
    code = (
        "import importlib, sys\n"
        f"sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tools')!r}]\n"
        f"for name in {modules(folder)!r}:\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
