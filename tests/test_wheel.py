"""What `pip install` puts on a machine: every file of the package, and recipes that need no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILD = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"


def ran(code: str, cwd: Path, **more: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, **more},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with what the wheel holds."""
    pytest.importorskip("setuptools", minversion="77")
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    wheel = ran(BUILD, tree).splitlines()[-1]
    with zipfile.ZipFile(tree / "dist" / wheel) as archive:
        archive.extractall(tree / "installed")
    return tree / "installed"


def test_every_file_of_the_package_is_in_the_wheel(installed: Path):
    def files(folder: Path) -> set[str]:
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        return {name for name in names if "__pycache__" not in name}

    assert files(installed / "loratlas") == files(ROOT / "src" / "loratlas")


def test_recipes_and_the_embedded_base_are_there(installed: Path, tmp_path: Path):
    code = (
        "import loratlas, loratlas.demo; from loratlas.study.spec.spec_file import load_spec;"
        "print(loratlas.__file__, load_spec('demo:facts').name, loratlas.demo.base_path().name)"
    )
    where, name, base = ran(code, tmp_path, PYTHONPATH=str(installed)).split()
    assert Path(where).is_relative_to(installed)
    assert (name, base) == ("facts", "llama-mini")


def test_what_the_package_says_of_itself(installed: Path):
    (metadata,) = installed.glob("*.dist-info/METADATA")
    fields = [
        line.split(": ", 1) for line in metadata.read_text(encoding="utf-8").splitlines() if ": " in line
    ]
    classifiers = {value for name, value in fields if name == "Classifier"}
    assert {"Typing :: Typed", "Intended Audience :: Science/Research"} <= classifiers
    required = [value for name, value in fields if name == "Requires-Dist" and "extra ==" not in value]
    assert len(required) == len({value.split(">=")[0] for value in required}), "a package is required twice"
