"""Whether a run compiles: by evidence, against what it promised, and without a change of what is computed."""

from __future__ import annotations

import pytest
import torch
from tests.training.small import adapted, encoded

from loratlas.errors import SettingsError
from loratlas.training.loop import fit
from loratlas.training.settings import Settings
from loratlas.training.step import compilation
from loratlas.training.step.compilation import CAUTION, GUESS, WATCHED, Compilation
from loratlas.training.step.frozen_prefix import layers_of


@pytest.fixture(scope="module")
def model():
    return adapted()


def judged(model, folder, *, steps, mode="auto", dropout=False):
    return Compilation(model, mode, steps=steps, dtype="float32", dropout=dropout, folder=folder)


def compiled(model) -> bool:
    states = {layer._compiled_call_impl is not None for layer in layers_of(model).modules}
    assert len(states) == 1
    return states.pop()


def feed(judge, seconds, *, start=0):
    for step in range(WATCHED):
        judge.stepped(start + step + 1, seconds, 100)


def test_a_short_run_stays_as_it_is(model, tmp_path):
    judge = judged(model, tmp_path, steps=200)
    with judge.run():
        feed(judge, 0.1)
        assert not judge.on
        assert not compiled(model)
    assert "190 steps of 0.1 s are left" in judge.reason
    assert "as a guess" in judge.reason


def test_a_long_run_tries_keeps_what_is_faster_and_remembers(model, tmp_path):
    steps = WATCHED + int(1.1 * CAUTION * GUESS.seconds / (1 - GUESS.ratio))
    judge = judged(model, tmp_path, steps=steps)
    with judge.run():
        feed(judge, 1.0)
        assert judge.on
        assert compiled(model)
        judge.stepped(WATCHED + 1, 20.0, 100)  # the step in which it was compiled
        for step in range(WATCHED - 1):
            judge.stepped(WATCHED + 2 + step, 0.8, 100)
        assert judge.on
    assert not compiled(model)
    assert "0.80 of the time" in judge.reason
    assert "19 s" in judge.reason
    # What took 19 s and saves a fifth pays for itself within 100 steps; without evidence nobody would have tried.
    again = judged(model, tmp_path, steps=WATCHED + 110)
    with again.run():
        feed(again, 1.0)
        assert again.on
    assert "as measured before" in again.reason
    short = judged(model, tmp_path, steps=WATCHED + 80)
    with short.run():
        feed(short, 1.0)
        assert not short.on


def test_what_is_not_faster_is_switched_off_and_not_tried_again(model, tmp_path):
    judge = judged(model, tmp_path, steps=10**6)
    with judge.run():
        feed(judge, 1.0)
        assert compiled(model)
        feed(judge, 0.99, start=WATCHED)
        assert not judge.on
        assert not compiled(model)
        feed(judge, 1.0, start=2 * WATCHED)  # settled: nothing more is decided
    assert "switched off again" in judge.reason
    again = judged(model, tmp_path, steps=10**6)
    with again.run():
        feed(again, 1.0)
        assert not again.on
    assert "took 0.99 of the time of others before" in again.reason


def test_dropout_masks_are_not_changed(model, tmp_path):
    judge = judged(model, tmp_path, steps=10**6, dropout=True)
    with judge.run():
        feed(judge, 1.0)
        assert not judge.on
    assert "dropout" in judge.reason


def test_off_is_off_and_on_is_on(model, tmp_path):
    with judged(model, tmp_path, steps=10**6, mode="off").run() as judge:
        feed(judge, 1.0)
        assert not judge.on
    with judged(model, tmp_path, steps=3, mode="on").run() as judge:
        assert judge.on
        assert compiled(model)
    assert judge.reason == "compiled, as asked"


def test_a_compiler_that_fails_is_left_out_or_named(model, tmp_path):
    from torch._dynamo.exc import TorchDynamoException

    judge = judged(model, tmp_path, steps=10**6)
    with judge.run():
        with pytest.raises(RuntimeError, match="something else"):
            judge.failed(RuntimeError("something else"))
        feed(judge, 1.0)
        judge.failed(TorchDynamoException("no compiler"))
        assert not compiled(model)
    assert "failed" in judge.reason
    with (
        judged(model, tmp_path, steps=3, mode="on").run() as judge,
        pytest.raises(SettingsError, match="auto"),
    ):
        judge.failed(TorchDynamoException("no compiler"))


def test_a_compiled_run_computes_the_same_and_is_not_compiled_for_every_batch(monkeypatch):
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    monkeypatch.setattr(compilation, "BACKEND", counter)
    rows = encoded(30)
    runs, frames = {}, []
    for mode in ("off", "on"):
        torch.compiler.reset()
        settings = Settings(steps=10, batch_size=3, dtype="float32", compile=mode)
        kept = adapted()
        runs[mode] = fit(
            kept, rows, settings, packed=True, on_step=lambda _event: frames.append(counter.frame_count)
        )
    torch.compiler.reset()
    assert runs["on"].compiled
    assert not runs["off"].compiled
    assert frames[-1] > 0
    assert frames[-1] == frames[13]  # four batches of unlike sizes; those after them brought nothing new
    for a, b in zip(runs["off"].curve, runs["on"].curve, strict=True):
        assert a.nll == pytest.approx(b.nll, rel=1e-5)
