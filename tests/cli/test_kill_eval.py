"""`eval --out` killed before every single one of its file operations: the same command then ends well."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from shell import environment

DRIVER = Path(__file__).with_name("kill_at_each_operation.py")
CAUSAL = ["eval", "demo:llama-mini", "demo:facts-300", "--limit", "4", "--max-length", "32", "--out", "{out}"]


@pytest.mark.slow
def test_every_kill_can_be_continued(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(tmp_path), *CAUSAL, "--json"],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    whole = found["whole"]
    assert whole["codes"] == [0], whole
    # Two row groups, two tables, the identity and the digests: each opened, closed, renamed; then removed.
    assert len(found["operations"]) >= 20
    assert {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "ParquetWriter.close"} <= set(
        found["operations"]
    )
    wanted = json.loads(whole["said"])["token_mean_nll"]
    failed = [
        trial for trial in found["trials"]
        if trial["codes"] != [9, 0]
        or trial["kept"] != whole["kept"]
        or json.loads(trial["said"])["token_mean_nll"] != wanted
    ]  # fmt: skip
    assert not failed, failed[0]
    assert len(found["trials"]) == len(found["operations"])
