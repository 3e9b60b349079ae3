"""One run says how shorter ones end: branches leave the trunk as it was, kills change nothing, records keep it all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.dynamic import curves
from benchmarks.dynamic.cases import Case, Opened
from benchmarks.dynamic.curves import Branches, decayed, trunk_steps
from benchmarks.dynamic.records import read_records
from benchmarks.dynamic.train_run import train_run
from benchmarks.dynamic.work import describe

from loratlas.errors import Interrupted


@pytest.fixture(scope="module")
def opened() -> Opened:
    return Opened(Case(base="demo:llama-mini", task="sorting", batch=2, held_out=6))


def test_a_shorter_run_on_the_way_changes_nothing_of_the_longer_one(opened: Opened):
    both = train_run(opened, "all", 0.01, 1, [10, 13])
    alone = train_run(opened, "all", 0.01, 1, [13])
    assert np.array_equal(both.lengths[13], alone.lengths[13])
    short = train_run(opened, "all", 0.01, 1, [10])
    assert np.array_equal(both.lengths[10], short.lengths[10])
    assert not np.array_equal(both.lengths[10], both.lengths[13])


def test_a_branch_decays_to_nothing_and_puts_the_trunk_back(opened: Opened, monkeypatch: pytest.MonkeyPatch):
    used: list[float] = []
    monkeypatch.setattr(
        curves, "decayed", lambda lr, step, steps: used.append(lr) or decayed(lr, step, steps)
    )
    seen: list[tuple[np.ndarray, float]] = []

    class Watched(Branches):
        def after_step(self, run, event):
            before = [copy.clone() for copy in run.masters.copy()]
            super().after_step(run, event)
            same = all(bool((a == b).all()) for a, b in zip(before, run.masters.copy(), strict=True))
            seen.append((np.array(same), run.optimizer.settings.lr))

    monkeypatch.setattr("benchmarks.dynamic.train_run.Branches", Watched)
    train_run(opened, "all", 0.01, 1, [10, 13])
    assert len(used) == 1 + 2
    assert all(bool(same) and lr == 0.01 for same, lr in seen)


def test_a_killed_run_goes_on_and_says_the_same(opened: Opened, tmp_path: Path):
    whole = train_run(opened, "all", 0.01, 1, [10, 13])

    def kill(length: int, point: dict) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        train_run(opened, "all", 0.01, 1, [10, 13], work=tmp_path, watch=kill)
    resumed = train_run(opened, "all", 0.01, 1, [10, 13], work=tmp_path)
    assert np.array_equal(whole.lengths[10], resumed.lengths[10])
    assert np.array_equal(whole.lengths[13], resumed.lengths[13])
    assert not list(tmp_path.iterdir())


def test_lengths_decay_over_their_last_tenth():
    assert [trunk_steps(length) for length in (10, 25, 100)] == [9, 22, 90]
    assert decayed(1.0, 0, 1) == 0.5
    rates = [decayed(0.01, step, 10) for step in range(10)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.01 / 11)


def test_arms_spend_the_same(opened: Opened):
    all_, half = (train_run(opened, arm, 0.01, 1, [2]) for arm in ("all", "attention"))
    assert 0 <= all_.trainable - half.trainable < 0.02 * all_.trainable


def test_records_come_back_as_they_were(opened: Opened, tmp_path: Path):
    record = train_run(opened, "all", 0.01, 1, [2])
    record.write(tmp_path)
    describe(opened, tmp_path)
    (kept,) = read_records(tmp_path)
    assert kept.placement == record.placement
    assert kept.trainable == record.trainable
    assert kept.lengths[2] == pytest.approx(np.array(record.lengths[2]), abs=6e-4)


def test_a_case_with_other_rows_is_refused(opened: Opened, tmp_path: Path):
    describe(opened, tmp_path)
    other = Opened(Case(base="demo:llama-mini", task="sorting", batch=2, held_out=5))
    with pytest.raises(SystemExit, match="held_out_digest"):
        describe(other, tmp_path)
