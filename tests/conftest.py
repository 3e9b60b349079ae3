"""What all tests share: no network, one thread, and where the real data lies, if it does."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import HealthCheck, settings

# How fast examples are made depends on what else the machine does; that is no failure.
# A deadline would assert how fast the machine is.
settings.register_profile("loratlas", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("loratlas")

# A job in the background ignores Ctrl-C and hands that on to every command it starts; tests that send it would wait.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Fixtures hold no examples, and files of one name would be taken for one another when searched for them.
collect_ignore_glob = ["conftest.py", "*/conftest.py"]

ROOT = Path(__file__).resolve().parents[1]
# What tests measure of the machine is no measurement: it must not end up in the user's cache.
os.environ["LORATLAS_CACHE"] = tempfile.mkdtemp(prefix="loratlas-cache-")
atexit.register(shutil.rmtree, os.environ["LORATLAS_CACHE"], ignore_errors=True)

SHARED = Path(os.environ.get("LORATLAS_SHARED", ROOT.parent / "shared"))


@pytest.fixture
def shared():
    """``shared("data/x.jsonl.gz")``: a real file outside the project, or a skip that says which one is missing."""

    def find(relative: str) -> Path:
        path = SHARED / relative
        if not path.exists():
            pytest.skip(
                f"needs the real file {relative}, which is not beside this checkout (LORATLAS_SHARED)"
            )
        return path

    return find
