"""A line on standard error every half minute, so that nobody takes a long silence for a hang."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from loratlas import formats
from loratlas.cli import output

EVERY = 30.0
"""Seconds between two lines."""


@contextmanager
def heartbeat(title: str, *, every: float = EVERY) -> Iterator[None]:
    """Within this context a line is printed every so many seconds, unless a terminal shows bars.

    Args:
        title: what is going on.
        every: seconds.
    """
    if sys.stderr.isatty():
        yield
        return
    done = threading.Event()
    began = time.monotonic()

    def beat() -> None:
        while not done.wait(every):
            output.note(f"{title}: at work for {formats.duration(time.monotonic() - began)}")

    thread = threading.Thread(target=beat, daemon=True, name=f"heartbeat of {title}")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
