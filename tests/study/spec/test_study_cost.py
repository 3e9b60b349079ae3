"""What a study says of its cost before it trains, and how that compares with what it then takes."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from tests.study.test_coordinator import FEWEST, SPEC

import loratlas
from loratlas.errors import ModelError
from loratlas.study.inputs.prepare import prepare
from loratlas.study.inputs.study_cost import PROCESS_BYTES, study_cost
from loratlas.study.run_study import run_study
from loratlas.study.spec.spec_file import parse_spec


@pytest.fixture(scope="module")
def spec():
    return parse_spec(SPEC)


@pytest.fixture(scope="module")
def prepared(spec):
    return prepare(spec)


def test_the_price_of_a_study_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    priced = loratlas.study_cost(SPEC, workers=2)
    assert (priced.runs, priced.steps, priced.workers) == (FEWEST, FEWEST * 3, 2)
    assert priced.seconds is not None
    assert priced.seconds > 0
    assert priced.peak_bytes is not None
    assert priced.peak_bytes > 2 * 8_392_960
    assert priced.memory_bytes is not None
    assert 3 * PROCESS_BYTES < priced.memory_bytes < 5 * 2**30
    assert not list(tmp_path.iterdir())


def test_an_arm_that_a_scan_would_place_is_priced_without_a_scan(monkeypatch):
    def scanned(*_args, **_more):
        raise AssertionError("a scan")

    monkeypatch.setattr(import_module("loratlas.study.inputs.prepare"), "_scan", scanned)
    arms = {"full": "all@top/4:1", "scanned": {"placement": "scan", "budget": "like=all:1"}}
    assert loratlas.study_cost({**SPEC, "arms": arms}).runs > 0


def test_more_of_everything_costs_more(spec, prepared):
    def priced(spec=spec, workers=1):
        return study_cost(spec, prepared, runs=10, workers=workers, device="cpu", timed=True)

    one, two, longer = priced(), priced(workers=2), priced(parse_spec({**SPEC, "steps": 30}))
    assert one.seconds == pytest.approx(2 * two.seconds)
    assert one.disk_bytes <= two.disk_bytes
    assert longer.seconds > 4 * one.seconds
    assert longer.steps == 10 * one.steps
    assert PROCESS_BYTES < two.memory_bytes - one.memory_bytes < one.memory_bytes
    assert replace(one, memory_bytes=None).sentence() != one.sentence()
    assert study_cost(spec, prepared, runs=10, workers=1, device="cpu", timed=False).seconds is None


def test_what_has_no_dry_run_is_not_predicted(spec, prepared):
    def cannot(ranks):
        raise ModelError(given="a base", found="nothing to predict from", instead="another")

    priced = study_cost(spec, replace(prepared, memory=cannot), runs=10, workers=1, device="cpu", timed=False)
    assert priced.peak_bytes is None
    assert "memory" not in priced.sentence()
    accelerated = study_cost(spec, prepared, runs=10, workers=1, device="cuda", timed=False)
    assert (accelerated.memory_bytes, accelerated.peak_bytes is None) == (None, False)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files; what another process renames or removes meanwhile counts nothing."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                size += (Path(parent) / name).stat().st_size
    return size


def test_a_study_says_it_before_its_first_run_and_takes_no_more_disk(tmp_path):
    said, largest = [], 0

    def on_event(event):
        nonlocal largest
        said.append(event)
        largest = max(largest, folder_bytes(out))

    out = tmp_path / "out"
    run_study(
        parse_spec({**SPEC, "arms": {"full": "all@top/4:1", "attention": "attention@top/4"}}),
        out,
        on_event=on_event,
    )
    assert said[0].kind == "prepared"
    assert said[0].message.startswith("This study takes at least ")
    priced = loratlas.study_cost({**SPEC, "arms": {"full": "all@top/4:1", "attention": "attention@top/4"}})
    assert 0 < largest <= priced.disk_bytes


def test_the_command_prices_and_trains_nothing(tmp_path, monkeypatch, capsys):
    from loratlas.cli import run

    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(json.dumps(SPEC))
    assert run(["study", "tiny.yaml", "--cost", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["schema"] == "loratlas.study_cost"
    assert printed["runs"] == FEWEST
    assert run(["study", "tiny.yaml", "--cost"]) == 0
    assert "Nothing was trained" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
