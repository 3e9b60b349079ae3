"""The code that a registration names, against the code that is there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from benchmarks.dynamic.preregistration import FILE, ROOT, START, THIRD, Preregistered, code_changed

from loratlas.files import sha256


def registered(code: dict[str, str]) -> Preregistered:
    return Preregistered(digest="", commit="", content={"code": code})


def test_a_file_that_changed_or_went_is_named_and_one_that_stayed_is_not(tmp_path: Path):
    for name in ("stays.py", "changes.py", "goes.py"):
        (tmp_path / name).write_text(f"# {name}\n")
    kept = registered({path.name: sha256(path)[:16] for path in sorted(tmp_path.iterdir())})
    assert code_changed(kept, tmp_path) == []
    (tmp_path / "changes.py").write_text("# otherwise\n")
    (tmp_path / "goes.py").unlink()
    assert code_changed(kept, tmp_path) == ["changes.py", "goes.py"]


def test_a_registration_that_names_no_code_has_none_that_changed():
    assert code_changed(Preregistered(digest="", commit="", content={})) == []


@pytest.mark.parametrize("path", [FILE, START, THIRD], ids=lambda path: path.stem)
def test_what_is_registered_can_be_compared(path: Path):
    """Another form of digest or of path would make every file a changed one."""
    code = json.loads(path.read_text(encoding="utf-8"))["code"]
    assert code
    assert all(re.fullmatch("[0-9a-f]{16}", prefix) for prefix in code.values())
    there = {name: sha256(ROOT / name)[:16] for name in code if (ROOT / name).is_file()}
    assert there
    assert code_changed(registered(there)) == []
