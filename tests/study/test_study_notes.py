"""What a study says beyond its findings."""

from __future__ import annotations

import pytest

from loratlas.scan.advice import track_record
from loratlas.study.execution.schedule_state import Schedule
from loratlas.study.results.study_notes import scan_record, study_notes
from loratlas.study.spec.spec_file import parse_spec

SPEC = parse_spec(
    "{name: x, model: m, data: {train: a, eval: b}, arms: {full: 'all:1', scanned: scan}, match: params}"
)
ROWS = {"cut": 0, "dropped": 0, "source": "a"}


def notes_of(scan: dict) -> list[str]:
    about = {"scan": scan, "matches": {}, "data": {"train": ROWS, "evaluation": ROWS}}
    state = Schedule(pending=(), planned=0, rates=SPEC.learning_rates, chosen={}, at_edge=frozenset())
    return study_notes(SPEC, about, state)


@pytest.mark.parametrize("by", ["gradient", "probe_energy", "probe_yield"])
def test_what_is_said_of_a_scan_is_about_the_score_that_decided_it(by: str):
    """Not about the one whose column comes first."""
    signals = [{"name": name} for name in ("probe_yield", "gradient", "probe_energy")]
    said = notes_of({"by": by, "signals": signals})
    assert track_record(by) in said
    others = {"gradient", "probe_energy", "probe_yield"} - {by}
    assert not {track_record(name) for name in others} & set(said)


def test_a_scan_of_before_keeps_the_score_and_the_visits_that_it_had():
    assert scan_record({"signals": [{"name": "gradient"}], "rows": 64}) == {
        "signals": [{"name": "gradient"}],
        "rows": 64,
        "by": "gradient",
        "visits": 64,
    }
