"""What hears of progress and remarks while a function works: a terminal, a notebook, or nobody."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

from loratlas import formats

if TYPE_CHECKING:
    from loratlas.anatomy.sites import Site
    from loratlas.data.rows import Rows
    from loratlas.scan.pace import ScanEvent


class Bar(Protocol):
    """A measure of how much is done."""

    total: int
    """Units in all; may change while they are done."""
    title: str
    """What is going on, in a word or two."""
    unit: str
    """What is counted, in the plural."""

    def start_at(self, done: int) -> None:
        """Units that were done before this process began; they do not count for the time left."""
        ...

    def to(
        self,
        done: float,
        remark: str,
        *,
        title: str | None = None,
        left: float | None = None,
        unit: str | None = None,
    ) -> None:
        """Set how many units are done, what to say about it, and the seconds that are left: nan where the caller knows
        that nobody can say yet, None where the bar should judge by its own pace."""
        ...


class Listener(Protocol):
    """Hears what a function has to say while it works."""

    def note(self, text: str) -> None:
        """A sentence that a person should read once."""
        ...

    def remark(self, rows: Rows) -> None:
        """What a person should know about rows that were read."""
        ...

    def progress(self, title: str, *, total: int, unit: str) -> AbstractContextManager[Bar]:
        """A stretch of work that can be counted."""
        ...

    def ranks(self, sites: Sequence[Site], before: Mapping[str, int], after: Mapping[str, int]) -> None:
        """Ranks that have changed in a run, path → rank before and after; a picture beside a sentence that says so."""
        ...


class Silent:
    """A listener that shows nothing and keeps the sentences.

    >>> silent = Silent()
    >>> silent.note("padded instead of packed")
    >>> silent.notes
    ['padded instead of packed']
    """

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Keep a sentence."""
        self.notes.append(text)

    def remark(self, rows: Rows) -> None:
        """Keep what is to be said about rows."""
        self.notes += [f"{rows.source}: {sentence}" for sentence in rows.remarks]

    def progress(self, title: str, *, total: int, unit: str) -> AbstractContextManager[Bar]:
        """Count without showing."""
        return nullcontext(_Uncounted(title, total, unit))

    def ranks(self, sites: Sequence[Site], before: Mapping[str, int], after: Mapping[str, int]) -> None:
        """Draw nothing."""


class Held:
    """Keeps what is to be said until a request was checked: one that is refused is told nothing but why.

    Args:
        listener: hears it afterwards, and all that follows.

    >>> silent = Silent()
    >>> held = Held(silent)
    >>> held.note("learning rate 0.01")
    >>> silent.notes
    []
    >>> held.release()
    >>> silent.notes
    ['learning rate 0.01']
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._kept: list[Callable[[], None]] | None = []

    def note(self, text: str) -> None:
        """Keep a sentence, or pass it on."""
        self._say(lambda: self._listener.note(text))

    def remark(self, rows: Rows) -> None:
        """Keep what is to be said about rows, or pass it on."""
        self._say(lambda: self._listener.remark(rows))

    def progress(self, title: str, *, total: int, unit: str) -> AbstractContextManager[Bar]:
        """Work has begun: nothing is kept any more."""
        self.release()
        return self._listener.progress(title, total=total, unit=unit)

    def ranks(self, sites: Sequence[Site], before: Mapping[str, int], after: Mapping[str, int]) -> None:
        """Keep a picture, or pass it on."""
        self._say(lambda: self._listener.ranks(sites, before, after))

    def release(self) -> None:
        """Say what was kept, in its order."""
        kept, self._kept = self._kept or [], None
        for say in kept:
            say()

    def _say(self, say: Callable[[], None]) -> None:
        if self._kept is None:
            say()
        else:
            self._kept.append(say)


class _Uncounted:
    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit

    def start_at(self, done: int) -> None:
        pass

    def to(
        self,
        done: float,
        remark: str,
        *,
        title: str | None = None,
        left: float | None = None,
        unit: str | None = None,
    ) -> None:
        pass


def known(seconds: float | None) -> float:
    """Seconds left for `Bar.to`: where nobody can say yet, nan, so that no bar guesses."""
    return math.nan if seconds is None else seconds


def scan_progress(bar: Bar, listener: Listener) -> Callable[[ScanEvent], None]:
    """What a scan reports, on a bar; the first estimate as a sentence of its own."""

    def on_event(event: ScanEvent) -> None:
        bar.total = event.total
        if event.remark:
            listener.note(event.remark)
        bar.to(event.done, "", title=event.title, left=known(event.seconds_left), unit=event.unit)
        if event.estimate and event.seconds_left is not None and event.done < event.total:
            listener.note(f"{event.title}: about {formats.duration(event.seconds_left)}, by its first steps")

    return on_event
