"""A scan that was killed anywhere and resumed equals the scan that was not, to the bit."""

from __future__ import annotations

import json
import random
import shutil

import pytest
from tests.signals.brute import examples
from tests.tiny import tiny_model
from tests.training.small import wrap

from loratlas.anatomy.read import read
from loratlas.errors import OutputError, RequestError
from loratlas.scan import scan_folder
from loratlas.scan.run_scan import scan
from loratlas.scan.scan_folder import STATE
from loratlas.scan.scores import RESULT, load_scan
from loratlas.sealed_json import write_sealed

STEPS = 12


class Killed(BaseException):
    """What stands for the end of a process."""


def measured(out, *, resume=False, stop_at=None, **options):
    model = tiny_model("llama")
    done = 0

    def on_event(event):
        nonlocal done
        done += 1
        if done == stop_at:
            raise Killed

    options = {"among": "attention@last2", "trial_steps": STEPS, "seed": 3, **options}
    return scan(
        model, read(model.config), wrap(examples(40)), out=out, resume=resume, on_event=on_event, **options
    )


def numbers(scanned) -> str:
    return json.dumps({**scanned.to_json(), "seconds": 0})


@pytest.fixture(scope="module")
def whole() -> str:
    return numbers(measured(None))


@pytest.mark.parametrize("stop_at", [1, 4, 5, 6, 9, 10, 11, 12])
def test_killed_and_resumed_equals_never_killed(whole, tmp_path, stop_at):
    with pytest.raises(Killed):
        measured(tmp_path / "s", stop_at=stop_at)
    assert numbers(measured(tmp_path / "s", resume=True)) == whole


def test_a_resumed_scan_makes_only_the_steps_that_are_missing(tmp_path):
    with pytest.raises(Killed):
        measured(tmp_path / "s", stop_at=8)  # both trials have a checkpoint at step 5
    with pytest.raises(Killed):  # 12 steps less 5
        measured(tmp_path / "s", resume=True, stop_at=7)
    assert measured(tmp_path / "s", resume=True, stop_at=1_000)


@pytest.mark.parametrize("together", [True, False])
def test_a_kill_before_any_write_is_survived(whole, tmp_path, monkeypatch, together):
    """Every single operation on files, one after the other, is the last one of a process."""
    if not together:
        monkeypatch.setattr("loratlas.training.fleet.members.MATRICES", ())
        whole = numbers(measured(None))
    operations = ("mkdir", "replace", "rename", "unlink", "write_text", "open")
    at = {"count": 0, "stop": -1}

    def counted(name, path, own):
        def call(self, *arguments, **named):
            if STATE in str(self):
                at["count"] += 1
                if at["count"] == at["stop"]:
                    raise Killed(f"{name} {self}")
            return own(self, *arguments, **named)

        monkeypatch.setattr(path, name, call)

    for name in operations:
        counted(name, type(tmp_path), getattr(type(tmp_path), name))
    measured(tmp_path / "count")
    total = at["count"]
    assert total > 30
    for stop in range(1, total + 1, 1 if together else 7):
        out = tmp_path / f"s{stop}"
        at.update(count=0, stop=stop)
        with pytest.raises(Killed):
            measured(out)
        at["stop"] = -1
        assert numbers(measured(out, resume=True)) == whole, stop
        shutil.rmtree(out)


def test_trials_at_unlike_steps_begin_anew(whole, tmp_path):
    with pytest.raises(Killed):
        measured(tmp_path / "s", stop_at=8)
    shutil.rmtree(tmp_path / "s" / STATE / "trial-1")
    assert numbers(measured(tmp_path / "s", resume=True)) == whole


def test_another_scan_there_is_refused(tmp_path):
    with pytest.raises(Killed):
        measured(tmp_path / "s", stop_at=8)
    with pytest.raises(OutputError, match="seed was 3, now 4"):
        measured(tmp_path / "s", resume=True, seed=4)
    with pytest.raises(OutputError, match="an earlier scan"):
        measured(tmp_path / "s")


def test_a_scan_that_ended_is_not_made_again(whole, tmp_path):
    assert numbers(measured(tmp_path / "s")) == whole
    assert not list((tmp_path / "s" / STATE).glob("trial-*"))
    assert numbers(measured(tmp_path / "s", resume=True, stop_at=1)) == whole


def test_signals_that_were_measured_are_not_measured_again(tmp_path):
    signals = ["gradient", "probe_yield"]
    one = numbers(measured(tmp_path / "one", signals=signals, by="gradient"))
    passes = 5
    with pytest.raises(Killed):
        measured(tmp_path / "s", signals=signals, by="gradient", stop_at=passes + 6)
    two = measured(tmp_path / "s", signals=signals, by="gradient", resume=True)
    assert numbers(two) == one


def test_broken_state_is_not_gone_on_with(tmp_path):
    with pytest.raises(Killed):
        measured(tmp_path / "s", stop_at=8)
    (path,) = (tmp_path / "s" / STATE / "trial-0" / "checkpoint").glob("step-000000*/state.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(OutputError, match=r"state\.safetensors is not what was written"):
        measured(tmp_path / "s", resume=True)
    assert scan_folder.SAVE_EVERY < STEPS


def test_a_flipped_bit_in_what_a_scan_has_kept_is_found(tmp_path):
    with pytest.raises(Killed):
        measured(tmp_path / "s", stop_at=8)
    state = tmp_path / "s" / STATE
    names = sorted(path.name for path in state.glob("*.json"))
    assert names == ["measured.json", "scan.json"]
    for name in names:
        before = (state / name).read_bytes()
        for at in (0, len(before) // 3, len(before) // 2, len(before) - 3):
            changed = bytearray(before)
            changed[at] ^= 1
            (state / name).write_bytes(bytes(changed))
            with pytest.raises(OutputError, match=name):
                measured(tmp_path / "s", resume=True)
        (state / name).write_bytes(before)
    assert measured(tmp_path / "s", resume=True)


def test_a_flipped_bit_in_a_scans_result_is_found(tmp_path):
    path = tmp_path / RESULT
    write_sealed(path, measured(None).to_json())
    before = path.read_bytes()
    bits = 8 * len(before)
    for bit in (0, bits - 1, *random.Random(0).sample(range(bits), 200)):
        changed = bytearray(before)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(changed))
        with pytest.raises(RequestError):
            load_scan(tmp_path)
    path.write_bytes(before)
    assert numbers(load_scan(tmp_path)) == numbers(measured(None))
