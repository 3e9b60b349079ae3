"""Ctrl-C and a full disk, for real: what was finished stays, the message says how to go on, and going on works."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shell import environment, finish, spawn

TRAIN = [
    "train",
    "demo:llama-mini",
    "demo:facts-300",
    "--placement",
    "q:2",
    "--batch-size",
    "2",
    "--max-length",
    "48",
]

SPEC = """
name: small
model: demo:llama-mini
data: {train: "demo:facts-300", eval: "demo:facts-300"}
arms: {full: "all:1", attention: "attention:1"}
learning_rates: [0.003, 0.01]
tuning: {seeds: 1, rows: 40, extensions: 0}
evaluation: {seeds: 2, rows: 20}
steps: 3
batch_size: 2
max_length: 48
demonstration: true
"""


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Read standard error until this text appears."""
    assert process.stderr is not None
    read = ""
    while text not in read:
        line = process.stderr.readline()
        assert line, f"the command ended before it said {text!r}: {read}"
        read += line
    return read


def test_train_stops_saves_and_goes_on(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    whole = cli(*TRAIN, "--steps", "40", "--out", "whole", "--json")
    assert whole.code == 0, whole.err

    process = spawn(*TRAIN, "--steps", "40", "--out", "stopped", "--json", cwd=tmp_path)
    wait_for(process, "training: ")
    os.killpg(process.pid, signal.SIGINT)
    stopped = finish(process)
    assert stopped.code == 130, stopped.err
    assert "Traceback" not in stopped.err
    assert stopped.json["error"]["code"] == "interrupted"
    assert "--resume" in stopped.json["error"]["instead"]

    resumed = cli(*TRAIN, "--steps", "40", "--out", "stopped", "--resume", "--json")
    assert resumed.code == 0, resumed.err
    assert resumed.json["train_nll"] == whole.json["train_nll"]
    ours, theirs = (
        tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("whole", "stopped")
    )
    assert ours.read_bytes() == theirs.read_bytes()


def test_study_stops_and_does_only_what_is_missing(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SPEC)
    process = spawn("study", "small.yaml", "--out", "s", "--workers", "1", "--json", cwd=tmp_path)
    ledger = tmp_path / "s" / "ledger.db"
    runs = tmp_path / "s" / "runs"
    while process.poll() is None and not (ledger.exists() and list(runs.glob("*/record.json"))):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    stopped = finish(process)
    assert stopped.code == 130, stopped.err
    assert "Traceback" not in stopped.err
    assert stopped.json["error"]["code"] == "interrupted"
    kept = {path: path.stat().st_mtime_ns for path in runs.glob("*/record.json")}
    assert kept

    done = cli("study", "small.yaml", "--out", "s", "--json")
    assert done.code == 0, done.err
    assert done.json["complete"] is True
    assert (tmp_path / "s" / "report.html").is_file()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept

    again = cli("study", "small.yaml", "--out", "s", "--json")
    assert again.json["findings"] == done.json["findings"]

    shown = cli("study", "small.yaml", "--out", "s")
    assert "attention" in shown.out
    assert "Traceback" not in shown.err

    page = cli("report", "s", "--out", "page.html", "--json")
    assert page.code == 0, page.err
    assert (tmp_path / "page.html").is_file()

    (tmp_path / "other.yaml").write_text(SPEC.replace("steps: 3", "steps: 4"))
    other = cli("study", "other.yaml", "--out", "s")
    assert other.code == 2
    assert "steps" in other.words


def test_ctrl_c_before_anything_is_there_to_save(tmp_path: Path):
    os.mkfifo(tmp_path / "slow.yaml")
    process = spawn("study", "slow.yaml", cwd=tmp_path)
    with (tmp_path / "slow.yaml").open("w"):  # opens when the command has begun to read
        os.killpg(process.pid, signal.SIGINT)
        told = finish(process)
    assert told.code == 130
    assert told.err.startswith("Stopped (interrupted)")
    assert "Traceback" not in told.err


def test_eval_stops_and_goes_on(cli, tmp_path: Path):
    """Whole parts of the table are kept, and the same command ends with the table of a pass that was not stopped."""
    words = ["eval", "demo:llama-mini", "demo:facts-3000", "--limit", "1500", "--max-length", "48", "--json"]
    process = spawn(*words, "--out", "stopped", cwd=tmp_path)
    parts = tmp_path / "stopped" / ".unfinished"
    while process.poll() is None and not (parts / "000000.parquet").exists():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    told = finish(process)
    assert told.code == 130, told.err
    assert "stopped" in told.json["error"]["found"]
    assert not (tmp_path / "stopped" / "tokens.parquet").exists()

    on = finish(spawn(*words, "--out", "stopped", cwd=tmp_path))
    assert "scoring: 1024/1500 rows" in on.err, "the first part was kept"
    whole = cli(*words, "--out", tmp_path / "whole")
    assert on.code == whole.code == 0, on.err
    assert on.json["token_mean_nll"] == whole.json["token_mean_nll"]
    ours, theirs = ((tmp_path / name / "tokens.parquet").read_bytes() for name in ("stopped", "whole"))
    assert ours == theirs


def limited(size: int):
    def limit() -> None:
        # A write beyond the limit then fails with "File too large" instead of ending the process.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


@pytest.mark.parametrize("size", [200, 20_000])
def test_no_room_while_training(tmp_path: Path, size: int):
    """Files cannot grow beyond so many bytes: neither the checkpoint nor the adapter fits."""
    words = [*TRAIN, "--steps", "3", "--out", "run", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from loratlas.cli import main; main()", *words],
        cwd=tmp_path,
        env={**environment(), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limited(size),
    )
    told = finish(process)
    assert told.code == 3, told.err
    assert "Traceback" not in told.err
    assert told.json["error"]["code"] == "storage"
    # What is there is whole: no adapter that cannot be read, no half-written JSON.
    for path in tmp_path.rglob("*.json"):
        json.loads(path.read_text())
    assert not list(tmp_path.rglob("*.safetensors"))


def test_no_room_at_the_end_of_a_study(cli, tmp_path: Path):
    """The page does not fit: the study failed, every run is kept, and the page can be written later."""
    (tmp_path / "small.yaml").write_text(SPEC)
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from loratlas.cli import main; main()",
            "study",
            "small.yaml",
            "--out",
            "s",
            "--json",
        ],
        cwd=tmp_path,
        env={**environment(), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limited(2_000_000),
    )
    told = finish(process)
    assert told.code == 3, told.err
    assert told.json["error"]["code"] == "storage"
    assert "Traceback" not in told.err
    assert not list((tmp_path / "s").glob("*report*"))

    page = cli("report", tmp_path / "s", "--json")
    assert page.code == 0, page.err
    assert page.json["complete"] is True
    assert (tmp_path / "s" / "report.html").is_file()


def obedient() -> None:
    """Take away root's right to write where the permissions say no; other users never had it."""
    drop_from_bounding_set, override = 24, 1
    if os.geteuid() == 0 and ctypes.CDLL(None).prctl(drop_from_bounding_set, override, 0, 0, 0) != 0:
        os._exit(77)


def begin(*words: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from loratlas.cli import main; main()", *words],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=obedient,
    )


def test_no_permission_to_write(tmp_path: Path):
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked").chmod(0o555)
    told = finish(begin(*TRAIN, "--steps", "2", "--out", "locked/run", "--json", cwd=tmp_path))
    if told.code == 77:
        pytest.skip("needs the right to drop a capability, which this machine does not give")
    assert told.code == 2, told.err
    assert told.json["error"]["code"] == "output"
    assert "locked" in told.json["error"]["found"]
    assert not list((tmp_path / "locked").iterdir())


def test_permission_lost_in_mid_run(tmp_path: Path):
    process = begin(*TRAIN, "--steps", "4000", "--out", "run", "--json", cwd=tmp_path)
    if process.poll() == 77:
        pytest.skip("needs the right to drop a capability, which this machine does not give")
    wait_for(process, "training: ")
    for path in [*tmp_path.rglob("*"), tmp_path]:
        if path.is_dir():
            path.chmod(0o555)
    os.killpg(process.pid, signal.SIGINT)
    told = finish(process)
    for path in [tmp_path, *tmp_path.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    assert told.code in (2, 3), told.err  # it was to be saved, and could not be
    assert told.json["error"]["code"] in ("output", "storage")
    assert "Traceback" not in told.err


def test_resume_of_nothing_begins_at_the_beginning(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A requeued job is one command, whether it was stopped before its first checkpoint or not."""
    monkeypatch.chdir(tmp_path)
    words = (*TRAIN, "--steps", "2", "--json")
    whole = cli(*words, "--out", "whole")
    (tmp_path / "requeued").mkdir()
    (tmp_path / "requeued" / ".adapter.999999999.part").mkdir()
    requeued = cli(*words, "--out", "requeued", "--resume")
    assert requeued.code == 0, requeued.err
    assert "no run to resume" in requeued.words
    assert requeued.json["train_nll"] == whole.json["train_nll"]
    assert cli(*words, "--out", "new", "--resume").json["train_nll"] == whole.json["train_nll"]
