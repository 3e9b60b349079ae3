"""Trials that are shortened so that a scan ends in time: by the pace of its first steps, and as if asked for."""

from __future__ import annotations

import json
from functools import partial
from itertools import count

import pytest
from tests.signals.brute import examples
from tests.tiny import tiny_model
from tests.training.small import wrap

from loratlas.anatomy.read import read
from loratlas.errors import SettingsError
from loratlas.scan import run_scan
from loratlas.scan.advice import LENGTHS
from loratlas.scan.pace import Pace
from loratlas.scan.run_scan import scan


class Killed(BaseException):
    """What stands for the end of a process."""


def measured(**options):
    model = tiny_model("llama")
    return scan(model, read(model.config), wrap(examples(24)), among="q@last1", seed=3, **options)


def numbers(scanned) -> str:
    return json.dumps({**scanned.to_json(), "seconds": 0})


@pytest.fixture
def slow(monkeypatch):
    """A step of the trials takes a second."""
    ticks = count()
    monkeypatch.setattr(run_scan, "Pace", partial(Pace, clock=lambda: float(next(ticks))))


@pytest.mark.parametrize(("minutes", "steps"), [(2, 80), (1, 40), (0.5, 20)])
def test_the_longest_that_ends_in_time(slow, minutes, steps):
    heard = []
    result = measured(minutes=minutes, on_event=heard.append)
    assert result.trial_steps == steps
    assert numbers(result) == numbers(measured(trial_steps=steps))
    said = [event.remark for event in heard if event.remark]
    assert bool(said) == (steps < max(LENGTHS))
    assert all(f"Trials of {steps} steps" in text for text in said)
    assert said == [note for note in result.notes() if note.startswith("Trials of")]


def test_what_was_used_before_the_scan_counts(slow):
    """Reading the model and the rows is a share of the minutes that a command may take."""
    assert measured(minutes=2, passed=60.0).trial_steps == 40
    with pytest.raises(SettingsError, match="minutes even with trials of 20 steps"):
        measured(minutes=2, passed=110.0)


def test_not_even_the_shortest_and_a_number_that_was_asked_for(slow):
    with pytest.raises(SettingsError, match="minutes even with trials of 20 steps"):
        measured(minutes=0.3)
    with pytest.raises(SettingsError, match="makes it about"):
        measured(minutes=1, trial_steps=80)


def test_the_passes_of_other_signals_count(slow):
    result = measured(minutes=5, signals=["gradient", "probe_yield"])
    assert result.trial_steps == 40
    assert "gradient" in result.readings


def test_a_shortened_scan_goes_on_with_its_own_length(slow, tmp_path):
    whole = measured(trial_steps=40)
    done = 0

    def stop(event):
        nonlocal done
        done += 1
        if done == 20:  # two steps of 80, and 17 of 40
            raise Killed

    with pytest.raises(Killed):
        measured(minutes=1, out=tmp_path / "s", on_event=stop)
    result = measured(minutes=1, out=tmp_path / "s", resume=True)
    assert numbers(result) == numbers(whole)
