"""Ctrl-C, and SIGTERM as schedulers send it: an end is asked for, said at once, and made where nothing is half done."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

FINISHING = "finishing this step…"
NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stop:
    """Whether somebody asked for an end.

    Attributes:
        requested: whether.
        by: what asked: ``"Ctrl-C"`` or ``"SIGTERM"``.
    """

    requested = False
    by = "Ctrl-C"

    def check(self) -> None:
        """Raises:
        KeyboardInterrupt: an end was asked for.
        """
        if self.requested:
            raise KeyboardInterrupt


_current: list[Stop] = []
"""That of the outermost context; those within it share it, so that each stops where it can."""

_last = ["Ctrl-C"]
"""What asked for an end last: a `KeyboardInterrupt` does not say."""


def asked_by() -> str:
    """What raised the last `KeyboardInterrupt`: ``"Ctrl-C"`` or ``"SIGTERM"``."""
    return _last[0]


def _interrupt(number: int, frame: Any) -> None:
    """Raise a `KeyboardInterrupt`, whichever of the two signals came."""
    _last[0] = NAMES[signal.Signals(number)]
    signal.default_int_handler(number, frame)


def terminate_like_ctrl_c() -> None:
    """From now on SIGTERM raises a `KeyboardInterrupt` in this process, as Ctrl-C does.

    For the command line, which owns its process; a library leaves the signal to its caller.
    """
    for number in NAMES:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, _interrupt)


@contextmanager
def interruptible(say: str = FINISHING) -> Iterator[Stop]:
    """Within this context the first Ctrl-C or SIGTERM only asks for an end, so that no update is left half done;
    standard error says so at once.

    The second one interrupts at once. Where another handler has been installed, or in a thread that cannot install
    one, a signal keeps its meaning. Contexts inside this one share its `Stop`.

    Args:
        say: what standard error says.
    """
    main = threading.current_thread() is threading.main_thread()
    if main and _current:
        yield _current[0]
        return
    stop = Stop()
    defaults = (signal.default_int_handler, signal.SIG_DFL, _interrupt)
    mine = [number for number in NAMES if main and signal.getsignal(number) in defaults]

    def handle(number: int, frame: Any) -> None:
        if stop.requested:
            _interrupt(number, frame)
        stop.requested, stop.by = True, NAMES[signal.Signals(number)]
        _last[0] = stop.by
        with suppress(OSError):
            # Not through a buffer, which the interrupted code may be writing to.
            os.write(2, f"\n{say}\n".encode())

    before = {number: signal.signal(number, handle) for number in mine}
    if main:
        _current.append(stop)
    try:
        yield stop
    finally:
        if main:
            _current.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
