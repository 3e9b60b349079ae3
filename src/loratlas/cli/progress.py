"""How far work is, on standard error: a bar on a terminal, lines elsewhere, and never a long silence."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from loratlas import formats
from loratlas.cli import output
from loratlas.errors import printable
from loratlas.time_left import TimeLeft

if TYPE_CHECKING:
    from loratlas.anatomy.sites import Site
    from loratlas.data.rows import Rows

PLAIN_EVERY = 10.0
"""Seconds between two progress lines where no bar can move."""

SILENT = 30.0
"""Seconds of silence after which a line says that work goes on, so that nobody takes it for a hang."""


class SilenceBreaker:
    """Prints a line whenever nothing was printed for a while.

    Args:
        words: what to print, given the seconds since the start.
        every: seconds of silence.
    """

    def __init__(self, words: Callable[[float], str], *, every: float = SILENT) -> None:
        self._words, self._every = words, every
        self._began = self._spoke = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="silence breaker")

    def start(self) -> None:
        """Listen for silence from now on."""
        self._began = self._spoke = time.monotonic()
        self._thread.start()

    def note(self, text: str) -> None:
        """Print a line; the silence begins anew."""
        self._spoke = time.monotonic()
        output.note(text)

    def stop(self) -> None:
        """Print nothing any more."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(max(self._spoke + self._every - time.monotonic(), 0.01)):
            if time.monotonic() - self._spoke >= self._every:
                self.note(self._words(time.monotonic() - self._began))


@contextmanager
def heartbeat(title: str, *, every: float = SILENT) -> Iterator[None]:
    """Within this context a line is printed every so many seconds, unless a terminal shows bars.

    Args:
        title: what is going on.
        every: seconds.
    """
    if sys.stderr.isatty():
        yield
        return
    silence = SilenceBreaker(lambda seconds: f"{title}: at work for {formats.duration(seconds)}", every=every)
    silence.start()
    try:
        yield
    finally:
        silence.stop()


class Terminal:
    """Hears of progress and remarks for a person at a terminal: all of it on standard error."""

    def note(self, text: str) -> None:
        """See :func:`loratlas.cli.output.note`."""
        output.note(text)

    def remark(self, rows: Rows) -> None:
        """See :func:`loratlas.cli.output.remark`."""
        output.remark(rows)

    def progress(self, title: str, *, total: int, unit: str) -> Progress:
        """See :class:`Progress`."""
        return Progress(title, total=total, unit=unit)

    def ranks(self, sites: Sequence[Site], before: Mapping[str, int], after: Mapping[str, int]) -> None:
        """See :func:`loratlas.cli.output.ranks`."""
        output.ranks(sites, before, after)


class Progress:
    """A bar on a terminal, a line every few seconds elsewhere; always on standard error.

    Args:
        title: what is going on, in a word or two.
        total: number of units.
        unit: their name, in the plural.

    >>> with Progress("training", total=3, unit="steps") as bar:  # prints on standard error
    ...     bar.to(1, "loss 2.31")
    """

    def __init__(self, title: str, *, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self._bar: Any = None
        self._task: Any = None
        self._said = 0.0
        self._time = TimeLeft()
        self._line = ""
        self._silence = SilenceBreaker(self._at_work)

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Rich

            self._bar = Rich(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[left]}", markup=False),
                TextColumn("{task.fields[remark]}", markup=False),
                console=output.console(error=True),
                expand=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, remark="", left="")
        else:
            self._silence.start()
        return self

    def _at_work(self, seconds: float) -> str:
        return f"{self._line or self.title}, at work for {formats.duration(seconds)}"

    def start_at(self, done: int) -> None:
        """Units that were done before this process began; they do not count for the time left."""
        self.to(done, "", left=math.nan)

    def to(
        self,
        done: float,
        remark: str,
        *,
        title: str | None = None,
        left: float | None = None,
        unit: str | None = None,
    ) -> None:
        """Set how much is done.

        Args:
            done: units finished, of ``total``.
            remark: what to print behind the bar.
            title: a new word before it.
            left: seconds left, where the caller knows better than the latest pace here; nan: nobody can say yet.
            unit: a new name of the units.
        """
        self.title, self.unit = title or self.title, unit or self.unit
        remark = printable(remark)
        now = time.monotonic()
        self._time.update(done)
        if left is None:
            left = self._time.seconds(self.total - done)
        known = left is not None and not math.isnan(left) and done < self.total
        remaining = f"{formats.duration(left)} left" if left is not None and known else ""
        if self._bar is not None:
            # Of what does not fit beside a bar of ten characters, the remark gives way.
            taken = len(self.title) + len(f"{self.total}/{self.total}") + len(remaining) + 10 + 4
            room = max(self._bar.console.width - taken, 0)
            self._bar.update(
                self._task,
                completed=done,
                total=self.total,
                description=self.title,
                remark=remark if len(remark) <= room else remark[: max(room - 1, 0)] + "…",
                left=remaining,
            )
        elif done >= self.total or now - self._said >= PLAIN_EVERY:
            self._said = now
            parts = [f"{self.title}: {int(done)}/{self.total} {self.unit}", remark, remaining]
            self._silence.note(", ".join(part for part in parts if part))
        self._line = f"{self.title}: {int(done)}/{self.total} {self.unit}"

    def __exit__(self, *_: object) -> None:
        self._silence.stop()
        if self._bar is not None:
            self._bar.stop()
