"""Commands killed before single file operations: the same command, of `train` with --resume, then ends well.

With ``LORATLAS_EVERY_KILL=1`` before every one of them; otherwise before a few that are spread evenly.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from shell import environment
from tests.serving.tiny_base import save_few_rows, save_tiny_base

ROOT = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("kill_at_each_operation.py")
EVERY = bool(os.environ.get("LORATLAS_EVERY_KILL"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    save_few_rows(folder / "rows.jsonl")
    return save_tiny_base(folder / "base")


def killed(folder: Path, *words: Any, then: tuple[str, ...] = (), most: int) -> dict[str, Any]:
    """What the driver printed; every kill was a kill, and every repeated command ended well with all its files."""
    folder.mkdir()
    options = [f"--then={word}" for word in then] + ([] if EVERY else [f"--most={most}"])
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(folder), *options, "--", *map(str, words), "--json"],
        capture_output=True,
        text=True,
        env=environment() | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    data = json.loads(done.stdout)
    whole = data["whole"]
    assert whole["codes"] == [0], whole
    failed = [
        trial for trial in data["trials"]
        if trial["codes"] != [9, 0] or trial["kept"].keys() != whole["kept"].keys()
    ]  # fmt: skip
    assert not failed, (len(failed), data["operations"][failed[0]["at"] - 1], failed[0])
    assert len(data["trials"]) == (len(data["operations"]) if EVERY else min(most, len(data["operations"])))
    print(
        f"\n{words[0]}: {len(data['operations'])} file operations, {len(data['trials'])} kills, all went on"
    )
    return data


def differing(found: dict[str, Any], but: tuple[str, ...] = ()) -> set[str]:
    """Files that some repeated command wrote otherwise than the command that was not killed."""
    whole = found["whole"]["kept"]
    return {
        name
        for trial in found["trials"]
        for name, digest in trial["kept"].items()
        if whole[name] != digest and not name.endswith(but)
    }


def test_train(base, tmp_path):
    rows = base.parent / "rows.jsonl"
    words = ["train", base, rows, "--placement", "q@0:1", "--batch-size", "2", "--max-length", "48"]
    words += ["--steps", "2", "--lr", "1e-3", "--save-every", "1", "--eval", rows, "--samples", "1"]
    stopped = killed(tmp_path / "trials", *words, "--out", "{out}", then=("--resume",), most=6)
    assert {"os.rename", "os.mkdir", "save_file", "save_file done", "ParquetWriter.close"} <= set(
        stopped["operations"]
    )
    assert len(stopped["operations"]) >= 40
    # Seconds differ from one run to the next, and digests of what holds them.
    assert not differing(stopped, but=("run.json", "curve.json", "state.json", "sha256.json"))


def test_eval(base, tmp_path):
    words = ["eval", base, base.parent / "rows.jsonl", "--max-length", "48"]
    stopped = killed(tmp_path / "trials", *words, "--out", "{out}", most=8)
    # Two row groups, two tables, the identity and the digests: each opened, closed, renamed; then removed.
    assert len(stopped["operations"]) >= 20
    assert {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "ParquetWriter.close"} <= set(
        stopped["operations"]
    )
    assert not differing(stopped)
    wanted = json.loads(stopped["whole"]["said"])["token_mean_nll"]
    assert all(json.loads(trial["said"])["token_mean_nll"] == wanted for trial in stopped["trials"])


@pytest.mark.parametrize("target", ["peft", "merged", "vllm", "gguf"])
def test_export(base, tmp_path, target):
    from loratlas.cli import run

    words = ["train", base, base.parent / "rows.jsonl", "--placement", "q@0:1", "--batch-size", "2"]
    words += ["--max-length", "48", "--steps", "1", "--lr", "1e-3", "--out", tmp_path / "run", "--json"]
    assert run([str(word) for word in words]) == 0
    stopped = killed(
        tmp_path / "trials", "export", tmp_path / "run", "--for", target, "--out", "{out}", most=4
    )
    assert {"os.rename", "os.mkdir", "os.rmdir"} <= set(stopped["operations"])
    assert not differing(stopped)


def test_report(tmp_path):
    words = ["report", ROOT / "tests" / "report" / "study_example.json"]
    stopped = killed(tmp_path / "trials", *words, "--out", "{out}", most=8)
    assert {"open", "os.rename", "os.remove"} <= set(stopped["operations"])
    assert all(json.loads(trial["said"])["complete"] for trial in stopped["trials"])
