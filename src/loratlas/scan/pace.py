"""How far a scan is and how long the rest takes: judged by its latest units, and refused where that is too long.

>>> pace = Pace([Phase(name="trials", unit="steps", work=[1.0] * 4)], clock=iter([0, 1, 2, 3, 5]).__next__)
>>> [pace.done("trials") for _ in range(4)]
[None, 2.0, 1.0, 0.0]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loratlas.errors import SettingsError


class TooLongError(SettingsError):
    """A scan that would take longer than it may, noticed at its first steps."""

    kind: str = ""
    """Of the phases that were judged."""
    seconds_per_work: float = 0.0
    """Their pace."""
    passed: float = 0.0
    """Seconds since the scan began."""


RECENT = 12
"""Units that the time left is judged by."""

TITLES = {
    "weights": "weights",
    "passes": "scanning",
    "trials": "trial training",
    "removals": "removing adapters",
}
"""Phase of a scan → the words before its bar."""

WARM = 1
"""First units of a phase whose time says nothing: they prove, allocate and compile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of a scan.

    Args:
        name: one of `TITLES`.
        unit: what is counted, in the plural.
        work: of each unit; comparable between phases that share a ``kind``.
        kind: phases of one kind do the same arithmetic, so that the pace of one says how long the others take.
        warm: first units that are not judged.
    """

    name: str
    unit: str
    work: Sequence[float]
    kind: str = "model"
    warm: int = WARM


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanEvent:
    """What happens, for a progress display.

    Args:
        phase, unit: see `Phase`.
        done, total: units of it.
        seconds_left: of this phase and the later ones of its kind; None before anything is known.
        estimate: whether this is the first that is known of it.
        remark: a sentence for people, at most times empty.
    """

    phase: str
    unit: str
    done: int
    total: int
    seconds_left: float | None
    estimate: bool = False
    remark: str = ""

    @property
    def title(self) -> str:
        """What is going on, in a word or two."""
        return TITLES[self.phase]


OnEvent = Callable[[ScanEvent], None]


class Pace:
    """Counts units and knows from the latest how long the rest takes.

    Args:
        phases: in their order.
        minutes: a scan that would take longer is refused as soon as a unit was timed; None for no limit.
        on_event: called after every unit.
        clock: seconds.
        passed: seconds that the scan took before these phases.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        *,
        minutes: float | None = None,
        on_event: OnEvent | None = None,
        clock: Callable[[], float] = time.monotonic,
        passed: float = 0.0,
    ) -> None:
        self._phases, self._minutes, self._on_event, self._clock = list(phases), minutes, on_event, clock
        self._done = {phase.name: 0 for phase in phases}
        self._times: dict[str, list[tuple[float, int]]] = {phase.name: [] for phase in phases}
        self._judged: set[str] = set()
        self._began = clock() - passed
        self.resumed = False

    def say(self, name: str, sentence: str) -> None:
        """Something that people should know while a phase goes on."""
        phase = next(phase for phase in self._phases if phase.name == name)
        if self._on_event is not None:
            total = len(phase.work)
            event = ScanEvent(
                phase=name,
                unit=phase.unit,
                done=self._done[name],
                total=total,
                seconds_left=None,
                remark=sentence,
            )
            self._on_event(event)

    def start_at(self, name: str, done: int) -> None:
        """Units that an earlier process did."""
        self.resumed = self.resumed or done > 0
        self._done[name] = done
        self._times[name].clear()

    def done(self, name: str, units: int = 1) -> float | None:
        """More units are done, one or several that were computed together; seconds left, None before they are known.

        Raises:
            TooLongError: the scan would take longer than ``minutes``.
        """
        phase = next(phase for phase in self._phases if phase.name == name)
        self._done[name] = min(self._done[name] + units, len(phase.work))
        now, times = self._clock(), self._times[name]
        times.append((now, self._done[name]))
        del times[: -RECENT - phase.warm]
        left = self._left(phase)
        first = left is not None and phase.kind not in self._judged
        if self._on_event is not None:
            self._on_event(
                ScanEvent(
                    phase=name,
                    unit=phase.unit,
                    done=self._done[name],
                    total=len(phase.work),
                    seconds_left=left,
                    estimate=first,
                )
            )
        if first and left is not None:
            self._judged.add(phase.kind)
            self._refuse(phase, now - self._began, left)
        return left

    def _pace(self, phase: Phase) -> float | None:
        """Seconds for a unit of work."""
        times = self._times[phase.name]
        if len(times) <= phase.warm:
            return None
        # The first times that were kept are those of the warm units, or older than the latest ones.
        (began, start), (now, done) = times[max(0, phase.warm - 1)], times[-1]
        worked = sum(phase.work[start:done])
        return (now - began) / worked if worked else 0.0

    def _left(self, phase: Phase) -> float | None:
        pace = self._pace(phase)
        if pace is None:
            return None
        rest = 0.0
        for other in self._phases[self._phases.index(phase) :]:
            if other.kind == phase.kind:
                rest += sum(other.work[self._done[other.name] :])
        return pace * rest

    def _refuse(self, phase: Phase, passed: float, left: float) -> None:
        if self._minutes is None or passed + left <= 60 * self._minutes:
            return
        error = too_long(self._minutes, passed + left)
        error.kind, error.seconds_per_work, error.passed = phase.kind, self._pace(phase) or 0.0, passed
        raise error


def too_long(minutes: float, seconds: float, even: str = "") -> TooLongError:
    """The refusal of a scan that would take so many seconds in all.

    Args:
        minutes: that it may take.
        seconds: that it would take.
        even: words for what already makes it shorter.
    """
    whole = seconds / 60
    return TooLongError(
        given=f"--minutes {minutes:g}",
        found=f"the pace of the first steps makes it about {whole:.1f} minutes{even}",
        instead=f"--yes, or --minutes {int(1.2 * whole) + 1}; shorter rows (--max-length) take less",
    )
