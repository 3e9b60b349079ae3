"""Differences in steps of the reference: through its curve, straight in log steps, and honest beyond it."""

from __future__ import annotations

import pytest

from loratlas.study.results.steps_saved import sentence, steps_saved

CURVE = {100: 0.2, 200: 0.0, 300: -0.1}


def test_at_the_points_of_the_curve():
    assert steps_saved(0.2, (0.2, 0.2), 200, [CURVE]) == {"value": -100.0, "low": -100.0, "high": -100.0}
    assert steps_saved(-0.1, (-0.1, -0.1), 200, [CURVE]) == {"value": 100.0, "low": 100.0, "high": 100.0}
    assert steps_saved(0.0, (0.2, 0.4), 200, [CURVE])["value"] == 0.0


def test_beyond_the_curve_it_goes_on_in_log_steps():
    # 0.2 nats a doubling: 0.4 is a quarter of the steps.
    assert steps_saved(0.4, (0.4, 0.4), 200, [CURVE])["value"] == pytest.approx(-150)


def test_far_beyond_nothing_is_claimed():
    saved = steps_saved(-0.05, (-9.0, 0.0), 200, [CURVE])
    assert saved["high"] is None
    assert saved["low"] == 0.0
    assert "unknown saved" in sentence(saved, "full", 200)


def test_the_interval_covers_the_curves_of_all_seeds():
    steep = {100: 0.4, 200: 0.0, 300: -0.2}
    both = steps_saved(-0.05, (-0.06, -0.04), 200, [CURVE, steep])
    one, other = (steps_saved(-0.05, (-0.06, -0.04), 200, [curve]) for curve in (CURVE, steep))
    assert both["low"] == min(one["low"], other["low"])
    assert both["high"] == max(one["high"], other["high"])
    assert both["low"] < both["value"] < both["high"]


def test_without_a_curve_that_falls_there_are_no_steps():
    assert steps_saved(-0.1, (-0.2, 0.0), 200, []) is None
    assert steps_saved(None, (None, None), 200, [CURVE]) is None
    assert steps_saved(-0.1, (-0.2, 0.0), 200, [{100: -0.1, 200: 0.0, 300: 0.1}]) is None
    assert sentence(None, "full", 200) == ""
