"""Pages that are written from kept results say what those results say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_of_studies_side_by_side_is_up_to_date():
    done = subprocess.run(
        [sys.executable, "tools/side_by_side.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == (ROOT / "docs/results/side_by_side.md").read_text(encoding="utf-8")
