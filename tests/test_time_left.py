"""Time that is left: by the latest work, and nothing before there is a basis."""

from __future__ import annotations

from itertools import accumulate

import pytest

from loratlas.cli.progress import Progress
from loratlas.time_left import RECENT, TimeLeft
from loratlas.training.run_counters import WARM_STEPS, RunCounters


def clock(*seconds: float):
    """A clock that goes on by these."""
    return accumulate(seconds).__next__


def test_the_first_update_is_not_judged():
    left = TimeLeft(clock=clock(0, 600, 1, 1))
    said = []
    for done in (1, 2, 3, 4):
        left.update(done)
        said.append(left.seconds(100 - done))
    assert said == [None, None, 97.0, 96.0]


def test_only_the_latest_updates_count():
    left = TimeLeft(clock=clock(*[10.0] * 30, *[1.0] * RECENT))
    for done in range(30 + RECENT):
        left.update(done)
    assert left.seconds(50) == pytest.approx(50.0)


def test_a_window_of_work_and_its_basis():
    """Four runs side by side, whose first three steps are slow: they would make a study of minutes last hours."""
    slow, fast = [60.0] * 12, [0.25] * 400
    left = TimeLeft(warm=12, basis=12, window=80, clock=clock(*slow, *fast))
    said = []
    for done in range(1, 400):
        left.update(done)
        said.append(left.seconds(400 - done))
    assert said[:23] == [None] * 23
    assert said[23] == pytest.approx(0.25 * (400 - 24))
    assert said[-1] == pytest.approx(0.25)


def test_work_that_starts_again_is_judged_anew_and_no_progress_is_no_update():
    left = TimeLeft(clock=clock(0, 1, 1, 5, 5, 5, 5))
    for done in (1, 2, 3, 3, 3):
        left.update(done)
    assert left.seconds(2) == 2.0
    left.update(1)
    assert left.seconds(2) is None
    assert left.seconds(0) == 0.0


def test_steps_that_warm_up_give_no_estimate():
    counters = RunCounters(steps=40, log_every=10)
    said = []
    for seconds in [30.0] * WARM_STEPS + [1.0] * 37:
        event = counters.add(nll=1.0, labelled=1, tokens=1, seconds=seconds, lr=0.1, norm=1.0)
        said.append(event.seconds_left)
    assert said[: WARM_STEPS + 1] == [None] * (WARM_STEPS + 1)
    assert said[WARM_STEPS + 1] == 35.0
    assert said[-1] == 0.0


def test_a_bar_says_nothing_before_it_can_and_never_guesses_for_others(capsys, monkeypatch):
    monkeypatch.setattr("loratlas.cli.progress.PLAIN_EVERY", 0.0)
    with Progress("scoring", total=4, unit="rows") as bar:
        for done in (1, 2, 3):
            bar.to(done, "")
        bar.to(3.5, "", left=float("nan"))
        bar.to(3.6, "", left=90.0)
    lines = capsys.readouterr().err.splitlines()
    assert ["left" in line for line in lines] == [False, False, True, False, True]
