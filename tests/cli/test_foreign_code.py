"""Nothing in a model's or an adapter's folder runs, whatever it asks for and whatever stands on standard input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from shell import environment

from loratlas.demo import base_path

ROW = json.dumps({"prompt": "one two", "completion": "three"}) + "\n"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded base with a tokenizer (and a config) of its own code, which leaves a marker when it is imported."""
    folder = tmp_path_factory.mktemp("hostile")
    base = folder / "base"
    shutil.copytree(base_path(), base)
    (base / "own.py").write_text(
        f"import pathlib\npathlib.Path({str(folder / 'marker')!r}).write_text('it ran')\n"
        "from transformers import PreTrainedTokenizerFast\nclass Own(PreTrainedTokenizerFast):\n    pass\n"
    )
    path = base / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    path.write_text(json.dumps(config))
    (folder / "rows.jsonl").write_text(ROW * 4)
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ("map", "base"),
        ("plan", "base", "--placement", "q:2"),
        ("scan", "base", "rows.jsonl", "--budget", "like=q:1"),
        ("train", "base", "rows.jsonl", "--placement", "q:2", "--steps", "1", "--out", "run"),
        ("eval", "base", "rows.jsonl"),
    ],
    ids=lambda words: words[0],
)
def test_code_in_a_folder_never_runs(hostile: Path, words: tuple[str, ...]):
    done = subprocess.run(
        [sys.executable, "-c", "from loratlas.cli import main; main()", *words],
        cwd=hostile,
        env=environment(),
        input="y\ny\ny\n",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not (hostile / "marker").exists()
    assert "[y/N]" not in done.stdout + done.stderr
    assert done.returncode in {0, 2}
