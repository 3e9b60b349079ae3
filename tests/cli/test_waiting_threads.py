"""Threads of the command line wait without taking cores from the threads that they wait for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = "from loratlas.cli import run; run(['--version']); import torch"


def turns(**given: str) -> str:
    """How often a waiting thread asks before it sleeps, as OpenMP says when the command line loads torch."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    command = [sys.executable, "-c", CODE]
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", **given}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    (line, *_) = [line for line in done.stderr.splitlines() if "SPINCOUNT" in line] or [""]
    return line.partition("=")[2].strip(" '")


def test_waiting_is_passive_unless_it_was_asked_for():
    if not (said := turns()):
        pytest.skip("this torch has another OpenMP, which does not say")
    assert said == "0"
    assert turns(OMP_WAIT_POLICY="active") != "0"
