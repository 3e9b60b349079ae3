"""How long the rest of a scan takes, by its latest units, and when it is refused."""

from __future__ import annotations

from itertools import accumulate

import pytest

from loratlas.errors import SettingsError
from loratlas.scan.pace import Pace, Phase


def clock(*seconds: float):
    """A clock that goes on by these."""
    return accumulate((0.0, *seconds)).__next__


def trials(steps: int, warm: int = 1) -> Phase:
    return Phase(name="trials", unit="steps", work=[1.0] * steps, warm=warm)


def test_the_first_unit_is_not_judged():
    pace = Pace([trials(5)], clock=clock(100, 1, 1))
    assert [pace.done("trials") for _ in range(3)] == [None, 3.0, 2.0]


def test_recent_units_say_how_long_the_rest_takes():
    pace = Pace([trials(60)], clock=clock(*[1.0] * 20, *[3.0] * 40))
    left = [pace.done("trials") for _ in range(40)]
    assert left[19] == 40.0
    assert left[39] == 60.0


def test_later_phases_of_a_kind_count_and_others_do_not():
    removals = Phase(name="removals", unit="adapters", work=[0.5] * 4)
    weights = Phase(name="weights", unit="matrices", work=[1.0, 9.0], kind="weights")
    pace = Pace([weights, trials(4), removals], clock=clock(1, 9, 1, 1))
    assert [pace.done("weights") for _ in range(2)] == [None, 0.0]
    assert [pace.done("trials") for _ in range(2)] == [None, 4.0]


def test_what_an_earlier_process_did_counts_as_done():
    pace = Pace([trials(80)], clock=clock(5, 1))
    pace.start_at("trials", 70)
    assert [pace.done("trials") for _ in range(2)] == [None, 8.0]


def test_too_long_is_refused_once_a_unit_was_timed():
    events = []
    pace = Pace([trials(100)], minutes=5, on_event=events.append, clock=clock(4, 6))
    pace.done("trials")
    with pytest.raises(SettingsError, match=r"about 10\.0 minutes") as refused:
        pace.done("trials")
    assert "--yes, or --minutes 12" in refused.value.instead
    assert events[-1].estimate
    assert events[-1].seconds_left == 588
    within = Pace([trials(100)], minutes=10, clock=clock(4, 6))
    assert [within.done("trials") for _ in range(2)] == [None, 588.0]


def test_units_that_are_computed_together_are_one_measurement():
    pace = Pace([trials(8)], clock=clock(5, 2, 2))
    assert [pace.done("trials", 2) for _ in range(3)] == [None, 4.0, 2.0]
