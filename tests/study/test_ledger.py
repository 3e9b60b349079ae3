"""The ledger: what is entered is found again, by loratlas and by optuna, and one coordinator holds it."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from loratlas.errors import OutputError
from loratlas.study.execution.ledger import NAME, Key, Ledger, claim

RUN = Key(phase="tuning", arm="full", lr=1e-3, seed=7)


def test_finished_runs_are_found_again(tmp_path):
    ledger = Ledger.open(tmp_path)
    ledger.note(arms=["full", "q"], spec_digest="ab")
    ledger.finish(ledger.begin(RUN, {"plan": "x"}), value=1.5, record={"nll": 1.5})
    again = Ledger.open(tmp_path, create=False)
    assert again.finished() == {RUN: {"nll": 1.5}}
    assert again.about["spec_digest"] == "ab"


def test_runs_left_open_are_done_again(tmp_path):
    ledger = Ledger.open(tmp_path)
    ledger.begin(RUN, {})
    assert ledger.finished() == {}
    assert Ledger.open(tmp_path).requeue() == 1
    assert Ledger.open(tmp_path).requeue() == 0
    ledger.finish(ledger.begin(RUN, {}), value=2.0, record={"nll": 2.0})
    assert ledger.finished() == {RUN: {"nll": 2.0}}


def test_diverged_runs_are_results(tmp_path):
    ledger = Ledger.open(tmp_path)
    ledger.finish(
        ledger.begin(RUN, {}), value=math.inf, record={"nll": None, "diverged": True, "train_nll": math.nan}
    )
    assert ledger.finished()[RUN] == {"nll": None, "diverged": True, "train_nll": None}


def test_optuna_reads_it(tmp_path):
    import optuna

    ledger = Ledger.open(tmp_path)
    ledger.note(arms=["full", "q"])
    for arm, value in (("full", 2.0), ("q", 1.0)):
        key = Key(phase="evaluation", arm=arm, lr=1e-3, seed=2**31 - 1)
        ledger.finish(ledger.begin(key, {}), value=value, record={"nll": value})
    study = optuna.load_study(study_name="loratlas", storage=f"sqlite:///{tmp_path / NAME}")
    assert study.best_trial.params == {"phase": "evaluation", "arm": "q", "lr": 1e-3, "seed": 2**31 - 1}


def test_no_ledger_and_no_ledger_file(tmp_path):
    with pytest.raises(OutputError, match="no ledger"):
        Ledger.open(tmp_path, create=False)
    (tmp_path / NAME).write_text("this is no database, but it is long enough to be looked at" * 20)
    with pytest.raises(OutputError, match="no ledger that can be opened"):
        Ledger.open(tmp_path)


def test_a_second_coordinator_is_told_who_runs_it(tmp_path):
    code = (
        "import sys, pathlib; from loratlas.study.execution.ledger import claim\n"
        "with claim(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match=f"process {other.pid} on"), claim(tmp_path):
            pass
        other.kill()
        other.wait()
    with claim(tmp_path):  # the dead process holds nothing
        pass
