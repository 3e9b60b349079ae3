"""Studies that really run, on the embedded base: results, going on after a kill, refusals that leave nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from loratlas.errors import (
    DataError,
    Interrupted,
    ModelError,
    OutputError,
    PlacementError,
    SettingsError,
    StorageError,
)
from loratlas.sealed_json import read_sealed
from loratlas.study.execution.ledger import Ledger
from loratlas.study.execution.run_records import read_examples
from loratlas.study.results.estimator import estimate
from loratlas.study.results.study_result import load_study
from loratlas.study.run_study import run_study
from loratlas.study.spec.spec_file import parse_spec

SPEC = {
    "name": "tiny",
    "model": "demo:llama-mini",
    "data": {"train": "demo:facts-300"},
    "arms": {"full": "all@top/4:1", "attention": "attention@top/4", "wide": "attention@top/4:8"},
    "reference": "full",
    "match": "params",
    "learning_rates": [1e-3, 3e-3, 9e-3],
    "tuning": {"seeds": 1, "rows": 20, "extensions": 0},
    "evaluation": {"seeds": 5, "rows": 24},
    "steps": 3,
    "batch_size": 4,
    "max_length": 64,
    "demonstration": True,
    "seed": 5,
}
FEWEST = 1 + 3 * (3 + 2) + 3 * 5 + 4
"""Runs of it where no optimum has to be walked to: the base, tuning, evaluation, the reference at other lengths."""

RUN = """
import json, sys
from loratlas.study.run_study import run_study
from loratlas.study.spec.spec_file import parse_spec
def on_event(event):
    print(event.kind, event.done, flush=True)
run_study(parse_spec(json.loads(sys.argv[1])), sys.argv[2], workers=2, on_event=on_event)
"""


def numbers(result) -> dict:
    """What must not depend on time, workers or interruptions."""
    data = json.loads(json.dumps(result.to_json()))
    for arm in data["arms"]:
        for name in ("step_seconds", "step_time_ratio", "peak_bytes", "peak_source"):
            del arm[name]
        for run in arm["runs"]:
            for name in ("step_seconds", "seconds", "peak_bytes"):
                del run[name]
    del data["pareto"], data["revision"]
    return data


def close(found, wanted, at="") -> None:
    """Equal up to rounding: which runs train side by side depends on what was left to do."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), at
        for key, value in wanted.items():
            close(found[key], value, f"{at}/{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), at
        for index, value in enumerate(wanted):
            close(found[index], value, f"{at}/{index}")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-2 if "/findings" in at else 1e-5, abs=1e-5), at
    elif not at.endswith("/sentence"):
        assert found == wanted, at


def start(out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, json.dumps(SPEC), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(process: subprocess.Popen, finished: int) -> None:
    for line in process.stdout:
        kind, done = line.split()
        if kind == "finished" and int(done) >= finished:
            return
    raise AssertionError("the study ended before that many runs")


def workers_of(pid: int) -> list[int]:
    """Process ids of a coordinator's workers."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    return [child for child in children if "execution.worker" in command(child)]


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study that ran through, its folder, and the events that it sent."""
    out = tmp_path_factory.mktemp("study") / "out"
    events = []
    result = run_study(parse_spec(SPEC), out, workers=2, on_event=events.append)
    return result, out, events


def test_a_study_has_arms_findings_and_a_base(whole):
    result, _, _ = whole
    data = result.to_json()
    assert result.complete
    assert [arm["name"] for arm in data["arms"]] == ["full", "attention", "wide"]
    assert data["reference"] == "full"
    assert 0 < data["base_nll"] < 20
    assert [finding["arm"] for finding in data["findings"]] == ["attention", "wide"]
    for arm in data["arms"]:
        assert len(arm["runs"]) == 5
        assert arm["ci"][0] < arm["nll"] < arm["ci"][1]
        assert len(arm["tuning"]) >= 5
        assert arm["near"][0] <= arm["lr"] <= arm["near"][2]
        assert arm["nll"] < data["base_nll"]
    json.dumps(data, allow_nan=False)


def test_differences_are_steps_of_the_reference_too(whole):
    data = whole[0].to_json()
    assert sorted((point["steps"], point["nll"] < data["base_nll"] + 5) for point in data["reference_curve"]) == [
        (1, True), (1, True), (5, True), (5, True),
    ]  # fmt: skip
    for finding in data["findings"]:
        assert set(finding["steps_saved"] or {"value": 0, "low": 0, "high": 0}) == {"value", "low", "high"}
        assert finding["equal_compute"] is None  # no arm of it was placed by a scan


def test_an_interval_and_its_p_say_the_same(whole):
    for finding in whole[0].to_json()["findings"]:
        low, high = finding["ci"]
        assert (finding["p_adjusted"] < 0.05) == (low > 0 or high < 0)
        assert finding["p_holm"] == finding["p_adjusted"] == min(1.0, 2 * finding["p"])


def test_a_folder_of_the_first_edition_is_not_gone_on_with(whole, tmp_path):
    out = shutil.copytree(whole[1], tmp_path / "copy")
    ledger = Ledger.open(out)
    old = {name: value for name, value in ledger.about["spec"].items() if name != "protocol"}
    ledger.note(spec=old, spec_digest=parse_spec(old, kept=True).digest)
    with pytest.raises(OutputError, match="differs in protocol"):
        run_study(parse_spec(SPEC), out, workers=1)
    (out / "findings.json").unlink()  # of the ledger as it was
    data = load_study(out).to_json()  # and it is read, as what it is
    assert data["protocol"] == 1
    assert "first edition" in data["superseded"]
    assert any("Superseded" in note for note in data["notes"])


def test_runs_are_fresh_and_paired(whole):
    data = whole[0].to_json()
    seeds = [{run["seed"] for run in arm["runs"]} for arm in data["arms"]]
    assert seeds[0] == seeds[1] == seeds[2]
    assert len(seeds[0]) == 5
    assert not seeds[0] & {run["seed"] for arm in data["arms"] for run in arm["tuning"]}


def test_findings_are_the_estimator_on_the_files(whole):
    result, out, _ = whole
    data = result.to_json()
    full, attention = ({run["seed"]: run["digest"] for run in arm["runs"]} for arm in data["arms"][:2])
    losses = {}
    for name, runs in (("full", full), ("attention", attention)):
        losses[name] = np.stack([read_examples(out / "runs" / runs[seed])[2] for seed in sorted(full)])
    tokens = read_examples(out / "runs" / full[sorted(full)[0]])[1]
    finding = data["findings"][0]
    share = {arm["name"]: arm["rate_error"] ** 2 for arm in data["arms"]}
    estimated = estimate(
        losses["attention"] - losses["full"], tokens, rate_share=share["attention"] + share["full"]
    )
    assert finding["difference"] == pytest.approx(estimated.value)
    assert finding["ci"] == pytest.approx(estimated.interval(0.975))
    assert data["arms"][0]["nll"] == pytest.approx(losses["full"].sum() / (5 * tokens.sum()))


def test_matching_is_solved_where_ranks_are_free_and_told_where_they_are_not(whole):
    data = whole[0].to_json()
    full, attention, wide = data["arms"]
    assert full["match"] is None
    assert attention["match"]["solved"]
    assert attention["match"]["wanted"] == full["trainable"]
    assert abs(attention["match"]["relative"]) < 0.1
    assert not wide["match"]["solved"]
    assert wide["match"]["relative"] == pytest.approx(wide["trainable"] / full["trainable"] - 1)
    assert any("wide names its ranks" in note for note in data["notes"])
    assert "Their budgets differ" in data["findings"][1]["sentence"]
    assert "equal trainable parameters" in data["findings"][0]["sentence"]


def test_a_demonstration_says_so(whole):
    data = whole[0].to_json()
    assert data["demonstration"]
    assert any("demonstration" in note for note in data["notes"])


def test_events_tell_how_far_it_is(whole):
    _, _, events = whole
    assert [event.kind for event in events][-1] == "complete"
    finished = [event for event in events if event.kind == "finished"]
    runs = whole[0].to_json()["runs"]["planned"]
    assert runs >= FEWEST
    assert [event.done for event in finished] == list(range(1, runs + 1))
    assert all(event.planned >= event.done for event in events)
    assert events[-1].planned == runs
    assert finished[-1].seconds_left == 0
    known = [event.seconds_left for event in events if event.seconds_left is not None]
    assert len(known) > 1
    assert min(known) >= 0


def test_the_bare_base_says_nothing_of_how_long_training_takes(whole):
    _, _, events = whole
    (judged,) = [event for event in events if event.kind == "finished" and event.phase == "base"]
    assert judged.seconds_left is None


def test_again_does_nothing_and_says_the_same(whole):
    result, out, _ = whole
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")}
    events = []
    again = run_study(parse_spec(SPEC), out, workers=2, on_event=events.append)
    assert again.to_json() == result.to_json() == load_study(out).to_json()
    assert [event.kind for event in events] == ["prepared", "complete"]
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")} == before
    assert read_sealed(out / "findings.json") == result.to_json()


def test_interrupted_and_killed_and_gone_on_ends_with_the_same_numbers(whole, tmp_path):
    """Law 5 for studies: Ctrl-C while tuning, SIGKILL while evaluating, then on to the end."""
    out = tmp_path / "out"

    def interrupt(event):
        if event.kind == "finished" and event.done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    # A test run in the background may have begun with Ctrl-C switched off.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(Interrupted) as caught:
            run_study(parse_spec(SPEC), out, workers=1, on_event=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught.value.exit_code == 130
    assert f"of {FEWEST} runs are finished" in caught.value.found
    assert "only what is missing" in caught.value.instead
    assert 3 <= len(Ledger.open(out, create=False).finished()) <= 4

    process = start(out)
    wait_for(process, 14)
    workers = workers_of(process.pid)
    assert workers
    with pytest.raises(OutputError, match=f"process {process.pid}"):  # one coordinator at a time
        run_study(parse_spec(SPEC), out)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 120  # its workers notice at their next step or job
    while any("execution.worker" in command(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    partial = load_study(out)
    assert not partial.complete
    assert all(finding.verdict == "undetermined" for finding in partial.findings)

    result = run_study(parse_spec(SPEC), out, workers=1)
    close(numbers(result), numbers(whole[0]))


def test_a_worker_that_dies_is_replaced(tmp_path):
    killed = []

    def on_event(event):
        if event.kind == "started" and event.phase == "tuning" and not killed:
            killed.extend(workers_of(os.getpid()))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    spec = {**SPEC, "learning_rates": [3e-3], "evaluation": {"seeds": 2, "rows": 8}}
    result = run_study(parse_spec(spec), tmp_path / "out", workers=1, on_event=on_event)
    assert killed
    assert result.complete


def test_another_study_in_the_folder_is_refused(whole):
    _, out, _ = whole
    with pytest.raises(OutputError, match="differs in steps"):
        run_study(parse_spec({**SPEC, "steps": 4}), out)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        run_study(parse_spec(SPEC), tmp_path)
    (tmp_path / "file").write_text("…")
    with pytest.raises(OutputError, match="a file"):
        run_study(parse_spec(SPEC), tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"arms": {"full": "all:8", "x": "attn.nothing:8"}}, PlacementError),
        ({"arms": {"full": "all:8", "x": "q:100000"}}, PlacementError),
        ({"arms": {"full": "all:8", "x": {"placement": "q:8", "init": "magic"}}}, SettingsError),
        ({"micro_batch": 32}, SettingsError),
        ({"model": "/no/such/folder"}, ModelError),
        ({"data": {"train": "demo:nothing"}}, DataError),
        ({"tuning": {"seeds": 1, "rows": 5000}}, DataError),
    ],
)
def test_a_wrong_request_leaves_nothing_behind(tmp_path, change, error):
    out = tmp_path / "out"
    with pytest.raises(error):
        run_study(parse_spec({**SPEC, **change}), out)
    assert not out.exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("…")
    with pytest.raises(OutputError):
        run_study(parse_spec(SPEC), tmp_path / "file" / "out")


def test_diverging_runs_are_told_and_decide_nothing(tmp_path):
    spec = {**SPEC, "learning_rates": [1e30], "evaluation": {"seeds": 5, "rows": 8}, "clip": None}
    result = run_study(parse_spec(spec), tmp_path / "out", workers=1)
    assert result.complete
    assert all(arm["diverged"] == 5 for arm in result.arms)
    for finding in result.findings:
        assert finding.verdict == "undetermined"
        assert "diverged" in finding.sentence
    json.dumps(result.to_json(), allow_nan=False)


def test_a_disk_that_stops_taking_writes_keeps_what_is_finished(tmp_path):
    out = tmp_path / "out"
    finished = []

    def on_event(event):
        # A file where the next runs' folders would be: writing them fails from here on, as on a full disk.
        if event.kind == "finished" and event.done == 2:
            finished.append(event.done)
            (out / "runs").rename(out / "cache" / "kept")
            (out / "runs").write_text("")

    with pytest.raises(StorageError) as caught:
        run_study(parse_spec(SPEC), out, workers=1, on_event=on_event)
    assert caught.value.exit_code == 3
    (out / "runs").unlink()
    (out / "cache" / "kept").rename(out / "runs")
    assert len(Ledger.open(out, create=False).finished()) == 2
    assert not load_study(out).complete


def test_a_run_that_lost_its_file_is_told(whole, tmp_path):
    out = shutil.copytree(whole[1], tmp_path / "copy")
    shutil.rmtree(out / "runs" / whole[0].arms[0]["runs"][0]["digest"])
    with pytest.raises(OutputError, match="missing, or not what was written"):
        load_study(out)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A study of few runs on a copy of the base, finished: its spec, folder, numbers and base."""
    from loratlas.demo import base_path

    home = tmp_path_factory.mktemp("short")
    base = shutil.copytree(base_path("demo:llama-mini"), home / "base")
    spec = parse_spec(
        {
            **SPEC,
            "model": str(base),
            "arms": {"full": "all@top/4:1", "attention": "attention@top/4:1"},
            "learning_rates": [3e-3],
            "evaluation": {"seeds": 2, "rows": 8},
        }
    )
    result = run_study(spec, home / "out", workers=1)
    return spec, home / "out", numbers(result), base


def broken_by(path: Path) -> None:
    """Flip one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_broken_run_folders_are_done_again_and_nothing_else(short, tmp_path):
    spec, whole, wanted, _ = short
    out = shutil.copytree(whole, tmp_path / "out")
    runs = sorted(path for path in (out / "runs").iterdir() if not path.name.startswith("."))
    broken_by(runs[0] / "record.json")
    broken_by(runs[1] / "curve.parquet")
    shutil.rmtree(runs[2])
    (runs[3] / "record.json").write_text("{")
    kept = {path: path.stat().st_mtime_ns for run in runs[4:] for path in run.iterdir()}
    events = []
    result = run_study(spec, out, workers=1, on_event=events.append)
    (redo,) = [event for event in events if event.kind == "redo"]
    assert "missing or broken" in redo.message
    assert sum(event.kind == "started" for event in events) == 4
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    close(numbers(result), wanted)
    again = []
    run_study(spec, out, workers=1, on_event=again.append)
    assert [event.kind for event in again] == ["prepared", "complete"]


def test_another_base_of_the_same_sizes_is_refused(short, tmp_path):
    """A study's runs and the study itself know the base's weights."""
    spec, whole, wanted, base = short
    out = shutil.copytree(whole, tmp_path / "out")
    assert Ledger.open(out).about["weights"]
    assert all(
        json.loads(path.read_text())["identity"]["weights"] == Ledger.open(out).about["weights"]
        for path in out.glob("runs/*/record.json")
    )
    shutil.rmtree(next(path for path in (out / "runs").iterdir() if not path.name.startswith(".")))
    weights = base / "model.safetensors"
    before = weights.read_bytes()
    try:
        broken_by(weights)
        with pytest.raises(OutputError, match="another base"):
            run_study(spec, out, workers=1)
    finally:
        weights.write_bytes(before)
    close(numbers(run_study(spec, out, workers=1)), wanted)
