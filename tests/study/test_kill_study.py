"""A study that is killed before any single file operation goes on: its beginning, its runs, its end.

With ``LORATLAS_EVERY_KILL=1`` before every one of them; otherwise before a few that are spread evenly.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.serving.tiny_base import save_few_rows, save_tiny_base, tiny_study

ROOT = Path(__file__).parents[2]
FEW, ALL = 8, 10**6


def test_every_kill_goes_on(tmp_path):
    rows = str(save_few_rows(tmp_path / "rows.jsonl", 24))
    spec = tiny_study(save_tiny_base(tmp_path / "base"), rows, name="killed", steps=2)
    most = ALL if os.environ.get("LORATLAS_EVERY_KILL") else FEW
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/study/kill_study.py"), str(tmp_path), json.dumps(spec), str(most)],
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
    data = json.loads(done.stdout.splitlines()[-1])
    print(data)
    assert {name: part["failed"] for name, part in data.items()} == {"begin": [], "end": [], "worker": []}, (
        done.stderr[-3000:]
    )
    # SQLite's statements are among them: the ledger's tables, what is noted in them, each run's beginning and end.
    assert data["begin"]["operations"] >= 40
    assert data["end"]["operations"] >= 4
    assert data["worker"]["operations"] >= 15
    assert all(part["kills"] == min(most, part["operations"]) for part in data.values())
