"""The table of signals is what the classes, the help and the errors say."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import loratlas.signals
from loratlas.errors import SettingsError
from loratlas.signals.base import Signal
from loratlas.signals.registry import (
    SIGNALS,
    TRIAL_COLUMNS,
    check_signals,
    columns_of,
    make,
    signal_of,
    untrained,
)


def test_every_signal_of_the_room_is_in_the_table_under_its_own_name():
    for path in Path(loratlas.signals.__file__).parent.glob("*.py"):
        importlib.import_module(f"loratlas.signals.{path.stem}")
    assert {
        kind.name: kind for kind in Signal.__subclasses__() if kind.__module__.startswith("loratlas.")
    } == {name: SIGNALS[name].load() for name in untrained()}


@pytest.mark.parametrize("name", SIGNALS)
def test_every_column_belongs_to_one_signal_and_finds_it(name):
    for column in columns_of(name, fisher=True):
        assert column in columns_of(signal_of(column), fisher=True)
    assert SIGNALS[name].measures
    assert SIGNALS[name].unit


def test_of_two_that_train_the_one_without_removals_is_taken():
    assert signal_of("probe") == "probe"
    assert {signal_of(column) for column in TRIAL_COLUMNS if column != "probe"} == {"probe_yield"}


def test_those_that_train_are_not_made():
    assert [type(signal).name for signal in make(list(SIGNALS), seed=1, fisher=True)] == list(untrained())
    assert "fisher" in {column.name for column in make(["gradient"], seed=1, fisher=True)[0].columns}


def test_errors_list_what_there_is():
    with pytest.raises(SettingsError) as unknown:
        check_signals(["magic"])
    assert all(name in unknown.value.instead for name in SIGNALS)
    with pytest.raises(SettingsError, match="no such score") as unknown:
        signal_of("magic")
    assert all(name in unknown.value.instead for name in TRIAL_COLUMNS)
    with pytest.raises(SettingsError, match="nothing to measure"):
        check_signals([])
