"""Ctrl-C and SIGTERM: asked for once, said at once, shared by contexts, and given back afterwards."""

from __future__ import annotations

import signal

import pytest

from loratlas.interruption import FINISHING, asked_by, interruptible, terminate_like_ctrl_c


@pytest.fixture(autouse=True)
def handlers_given_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_the_first_asks_and_the_second_interrupts(number, name, capfd):
    before = signal.getsignal(number)
    with interruptible() as stop:
        stop.check()
        signal.raise_signal(number)
        assert (stop.requested, stop.by) == (True, name)
        assert FINISHING in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert asked_by() == name
    assert signal.getsignal(number) == before


def test_contexts_within_share_what_was_asked_for(capfd):
    with interruptible("leaving…") as outer:
        with interruptible() as inner:
            signal.raise_signal(signal.SIGTERM)
            assert inner is outer
            assert inner.by == "SIGTERM"
        assert outer.requested  # an inner context that ended keeps nothing of it to itself
    assert "leaving…" in capfd.readouterr().err
    with interruptible() as later:
        assert not later.requested


def test_a_command_takes_sigterm_for_ctrl_c():
    terminate_like_ctrl_c()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    assert asked_by() == "SIGTERM"
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert asked_by() == "Ctrl-C"
    with interruptible() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested


def test_a_handler_of_the_caller_stays():
    heard = []
    signal.signal(signal.SIGTERM, lambda *_: heard.append("mine"))
    with interruptible() as stop:
        signal.raise_signal(signal.SIGTERM)
    assert heard == ["mine"]
    assert not stop.requested
