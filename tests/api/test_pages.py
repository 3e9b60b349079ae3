"""The API page says what the docstrings say, and the notebook runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_api_page_is_what_the_docstrings_say():
    tool = ROOT / "tools" / "api_reference.py"
    done = subprocess.run([sys.executable, str(tool), "--check"], cwd=ROOT, timeout=120)
    assert done.returncode == 0, "python tools/api_reference.py renews docs/api.md"


def test_the_quickstart_notebook_runs(tmp_path: Path):
    notebook = json.loads((ROOT / "docs" / "notebooks" / "quickstart.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    shown = [cell.rstrip().rpartition("\n")[2] for cell in cells]
    # A notebook shows what stands alone on the last line of a cell.
    lines = [
        f"{cell}\n" + (f"assert ({last})._repr_html_()\n" if last.isidentifier() else "")
        for cell, last in zip(cells, shown, strict=True)
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=tmp_path, check=True, timeout=300)
