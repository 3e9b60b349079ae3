"""Law 5: a run that is killed anywhere and resumed equals the run that was not, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.training.small import adapted, encoded, weights

from loratlas.errors import Interrupted
from loratlas.training.loop import fit
from loratlas.training.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12


def settings(**changes):
    base = {"steps": STEPS, "lr": 1e-2, "batch_size": 4, "dtype": "float32", "dropout": 0.1, "save_every": 4}
    return Settings(**{**base, **changes})


def model(dtype="float32"):
    return adapted(lora_dropout=0.1, dtype=dtype)


def same(first, second):
    weight = weights(second)
    return all(torch.equal(value, weight[name]) for name, value in weights(first).items())


def numbers(result):
    return [(point.step, point.nll, point.lr, point.tokens) for point in result.curve]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stop", [1, 4, 7, 11])
def test_interrupted_and_resumed(tmp_path, stop, dtype):
    data, wanted = encoded(20), settings(dtype=dtype, loraplus=4.0)
    whole = model(dtype)
    reference = fit(whole, data, wanted)

    def interrupt(event):
        if event.step == stop:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="with resume") as caught:
        fit(model(dtype), data, wanted, out=tmp_path, on_step=interrupt)
    assert f"step {stop} of {STEPS}" in caught.value.found
    resumed = model(dtype)
    steps = []
    result = fit(
        resumed, data, wanted, out=tmp_path, resume=True, on_step=lambda event: steps.append(event.step)
    )
    assert steps == list(range(stop + 1, STEPS + 1))
    assert same(whole, resumed)
    assert numbers(result) == numbers(reference)
    assert (result.tokens, result.labelled_tokens) == (reference.tokens, reference.labelled_tokens)
    assert result.train_nll == reference.train_nll


def test_a_finished_run_resumes_to_itself(tmp_path):
    data = encoded(20)
    first = model()
    done = fit(first, data, settings(), out=tmp_path)
    again = model()
    steps = []
    result = fit(again, data, settings(), out=tmp_path, resume=True, on_step=steps.append)
    assert steps == []
    assert same(first, again)
    assert numbers(result) == numbers(done)


def test_early_stop_is_resumed_with_its_patience(tmp_path):
    data, judged = encoded(20), encoded(8, seed=1)
    wanted = settings(early_stop=2, evaluate_every=2, steps=40, lr=0.1)
    whole = model()
    reference = fit(whole, data, wanted, evaluate=judged)
    assert reference.stopped_early

    def interrupt(event):
        if event.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        fit(model(), data, wanted, evaluate=judged, out=tmp_path, on_step=interrupt)
    resumed = model()
    result = fit(resumed, data, wanted, evaluate=judged, out=tmp_path, resume=True)
    assert (result.steps, result.stopped_early) == (reference.steps, True)
    assert same(whole, resumed)


def test_a_checkpoint_is_due_by_time_as_well(tmp_path):
    """However long a step takes: here every one takes longer than the time that is given."""
    steps = []

    def watch(event):
        steps.append([int(path.name[5:]) for path in (tmp_path / "checkpoint").glob("step-*")])

    wanted = settings(save_every=1000, save_seconds=1e-9, steps=4)
    fit(model(), encoded(20), wanted, out=tmp_path, on_step=watch)
    assert steps == [[1], [2], [3], [3]]
    # It is no part of what run this is.
    fit(model(), encoded(20), settings(save_every=7, steps=4), out=tmp_path, resume=True)


SCRIPT = """
import json, sys, time
from pathlib import Path
from loratlas.errors import Interrupted
from loratlas.training.loop import fit
from tests.laws.test_law5_resume import encoded, model, settings

out = Path(sys.argv[1])

def slowly(event):
    (out / "step").write_text(str(event.step))
    time.sleep(0.3)

try:
    fit(model(), encoded(20), settings(save_every=2), out=out, on_step=slowly)
except Interrupted as error:
    print(json.dumps(error.to_json()))
    sys.exit(error.exit_code)
"""


def started(out):
    """A process that trains slowly, once it has done five steps."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(out)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(6000):
        seen = out / "step"
        if seen.exists() and (seen.read_text() or "0") not in "01234":
            return process
        assert process.poll() is None, "the process ended by itself"
        time.sleep(0.05)
    process.kill()
    raise AssertionError("no five steps within five minutes")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_and_resumed(tmp_path, how):
    process = started(tmp_path)
    process.send_signal(how)
    output, said = process.communicate(timeout=60)
    if how == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == Interrupted.exit_code
        error = json.loads(output)["error"]
        assert "--resume" in error["instead"]
        assert error["given"] == ("Ctrl-C" if how == signal.SIGINT else "SIGTERM")
        assert "finishing this step…" in said
    kept = sorted(path.name for path in (tmp_path / "checkpoint").glob("step-*"))
    assert kept
    resumed, whole = model(), model()
    first = []
    wanted = settings(save_every=2)
    fit(
        resumed,
        encoded(20),
        wanted,
        out=tmp_path,
        resume=True,
        on_step=lambda event: first.append(event.step),
    )
    assert first[0] > 1
    fit(whole, encoded(20), wanted)
    assert same(whole, resumed)
