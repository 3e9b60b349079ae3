"""Schedulers stop jobs by SIGTERM and start them again: what is stopped keeps its state and says how to go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from shell import DATA, MODEL, SCANNED_STUDY, Outcome, finish, spawn
from tests.tasks.bases import base

from loratlas.demo import base_path

SCAN = (
    "scan", MODEL, DATA, "--max-length", "48", "--limit", "64", "--among", "q@top/2", "--dtype", "float32",
    "--trial-steps", "40", "--json",
)  # fmt: skip
SIGNALS = [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")]


def stop_when(process: subprocess.Popen[str], ready: Callable[[], bool], how: int) -> Outcome:
    """Send a signal to a command as soon as something is there."""
    while process.poll() is None and not ready():
        time.sleep(0.01)
    assert process.poll() is None, finish(process)
    os.killpg(process.pid, how)
    return finish(process)


def scores(outcome: Outcome) -> list[dict]:
    assert outcome.code == 0, outcome.err
    return outcome.json["scores"]


@pytest.fixture(scope="module")
def whole() -> list[dict]:
    """The scores of a scan that nobody stopped."""
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    from loratlas.cli import run

    out = StringIO()
    with redirect_stdout(out), redirect_stderr(StringIO()):
        assert run(SCAN) == 0
    return json.loads(out.getvalue())["scores"]


@pytest.mark.parametrize(("how", "name"), SIGNALS, ids=["SIGINT", "SIGTERM"])
def test_a_stopped_scan_goes_on(cli, how: int, name: str, whole: list[dict], tmp_path: Path):
    trial = tmp_path / "scan" / "state" / "trial-0" / "checkpoint"
    process = spawn(*SCAN, "--out", "scan", cwd=tmp_path)
    stopped = stop_when(process, lambda: any(trial.glob("step-*")), how)
    assert stopped.code == 130, stopped.err
    assert "finishing this step…" in stopped.err
    error = stopped.json["error"]
    assert (error["code"], error["given"]) == ("interrupted", name)
    assert "--resume" in error["instead"]
    assert "is kept" in error["found"]
    resumed = cli(*SCAN, "--out", tmp_path / "scan", "--resume")
    assert scores(resumed) == whole
    assert "begins at the beginning" not in resumed.words


def test_a_scan_killed_before_its_first_checkpoint_begins_again_by_the_same_command(
    cli, whole: list[dict], tmp_path: Path
):
    """Also in no folder, and in an empty one: a requeued job is one command."""
    words = (*SCAN, "--out", "scan", "--resume")
    begun = tmp_path / "scan" / "state" / "scan.json"
    killed = stop_when(spawn(*words, cwd=tmp_path), begun.exists, signal.SIGKILL)
    assert killed.code == -signal.SIGKILL
    assert "begins at the beginning" in killed.words  # there was no folder
    assert not list((tmp_path / "scan").rglob("step-*"))
    again = cli(*SCAN, "--out", tmp_path / "scan", "--resume")
    assert "no scan to resume; it begins at the beginning" in again.words
    assert scores(again) == whole


def test_passes_of_a_scan_stop_between_two_of_them(tmp_path: Path):
    words = ("scan", MODEL, DATA, "--by", "gradient", "--rows", "128", "--max-length", "256", "--json")
    process = spawn(*words, cwd=tmp_path)
    assert process.stderr is not None
    for line in process.stderr:
        if "scanning: " in line:
            break
    os.killpg(process.pid, signal.SIGTERM)
    stopped = finish(process)
    assert stopped.code == 130, stopped.err
    assert "finishing this step…" in stopped.err
    assert "nothing of it is kept without --out" in stopped.json["error"]["found"]


STUDY = ("study", "small.yaml", "--out", "s", "--workers", "1", "--json")


def test_a_study_goes_on_with_its_scan(tmp_path: Path):
    """With a base of random weights, whose trials end soon."""
    base(tmp_path / "base", "llama", tokenizer=base_path())
    (tmp_path / "small.yaml").write_text(SCANNED_STUDY)
    (tmp_path / "s").mkdir()  # an empty folder
    trial = tmp_path / "s" / "cache" / "scan" / "state" / "trial-0" / "checkpoint"
    stopped = stop_when(spawn(*STUDY, cwd=tmp_path), lambda: any(trial.glob("step-*")), signal.SIGTERM)
    assert stopped.code == 130, stopped.err
    assert "finishing this step…" in stopped.err
    assert "stopped in its scan" in stopped.json["error"]["found"]
    kept = max(path.name for path in trial.glob("step-*"))
    seen: list[str] = []
    process = spawn(*STUDY, cwd=tmp_path)
    while process.poll() is None:
        with suppress(FileNotFoundError):  # a checkpoint that the next one replaces
            seen.extend(path.name for path in trial.glob("step-*"))
        time.sleep(0.01)
    again = finish(process)
    assert min(seen) == kept, "the scan went on"
    assert again.code == 0, again.err
    assert "error" not in again.json


def test_a_study_goes_on_with_its_runs(cli, tmp_path: Path, monkeypatch):
    base(tmp_path / "base", "llama", tokenizer=base_path())
    (tmp_path / "small.yaml").write_text(SCANNED_STUDY.replace('"scan"', '"v@0:1"'))
    runs = tmp_path / "s" / "runs"
    stopped = stop_when(spawn(*STUDY, cwd=tmp_path), lambda: any(runs.glob("*/record.json")), signal.SIGTERM)
    assert stopped.code == 130, stopped.err
    assert "finished runs are kept…" in stopped.err
    assert stopped.json["error"]["given"] == "SIGTERM"
    monkeypatch.chdir(tmp_path)
    done = cli(*STUDY)
    assert done.code == 0, done.err
    assert done.json["complete"] is True
    assert not (tmp_path / "s" / "cache" / "scan").exists()


@pytest.mark.parametrize(("how", "name"), SIGNALS, ids=["SIGINT", "SIGTERM"])
def test_an_audit_that_is_stopped_leaves_nothing(how: int, name: str, tmp_path: Path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "eval_results.json").write_text(json.dumps({"eval_loss": 3.14159265}))
    process = spawn(
        "audit-log", "eval_results.json", "demo:facts-3000", "--model", MODEL, "--json", cwd=tmp_path
    )
    scratch = tmp_path / "scratch"
    stopped = stop_when(process, lambda: any(scratch.glob("loratlas-audit-*/*")), how)
    assert stopped.code == 130, stopped.err
    assert "Traceback" not in stopped.err
    assert stopped.json["error"]["given"] == name
    assert stopped.json["error"]["instead"] == "the same command again"
    assert not list(scratch.glob("loratlas-audit-*"))


def test_a_run_that_is_stopped_after_its_last_step_goes_on(cli, tmp_path: Path):
    words = (
        "train", MODEL, DATA, "--placement", "q:1", "--steps", "2", "--batch-size", "2", "--max-length", "48",
        "--eval", DATA, "--lr", "0.01", "--json",
    )  # fmt: skip
    process = spawn(*words, "--out", "run", cwd=tmp_path)
    assert process.stderr is not None
    for line in process.stderr:
        if "training: 2/2" in line:
            break
    checkpoint = tmp_path / "run" / "checkpoint" / "step-00000002"
    stopped = stop_when(process, checkpoint.exists, signal.SIGTERM)
    assert stopped.code == 130, stopped.err
    assert stopped.json["error"]["given"] == "SIGTERM"
    assert stopped.json["error"]["instead"] == "the same command with --resume"
    resumed = cli(*words, "--out", tmp_path / "run", "--resume")
    assert resumed.code == 0, resumed.err
    assert resumed.json["eval"]["token_mean_nll"] > 0
