"""A study that is killed before any single file operation goes on: its beginning, its runs, its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.study.test_coordinator import SPEC

ROOT = Path(__file__).parents[2]
FEW = {
    **SPEC,
    "arms": {"full": "all@top/8:1", "attention": "attention@top/8:1"},
    "learning_rates": [3e-3],
    "evaluation": {"seeds": 2, "rows": 4},
    "steps": 2,
}


def test_every_kill_goes_on(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/study/kill_study.py"), str(tmp_path), json.dumps(FEW)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name: part["failed"] for name, part in found.items()} == {"begin": [], "end": [], "worker": []}, (
        done.stderr[-3000:]
    )
    assert found["begin"]["operations"] >= 10
    assert found["end"]["operations"] >= 3
    assert found["worker"]["operations"] >= 15
