"""How long work takes that is left, judged by the latest of it.

>>> left = TimeLeft(clock=iter([0, 9, 10, 11, 12]).__next__)
>>> for done in (1, 2, 3, 4, 5):
...     left.update(done)
...     print(left.seconds(10 - done))
None
None
7.0
6.0
5.0
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

RECENT = 20
"""Updates that the pace is judged by."""


class TimeLeft:
    """Seconds left of work that is counted as it goes on.

    Nothing is known before there is a basis: the first work loads, proves, allocates and compiles.

    Args:
        warm: work at the beginning that is not judged; the first update never is.
        basis: work that has to be judged before anything is said.
        window: work that the pace is judged by, in its unit; None for the last `RECENT` updates.
        clock: seconds.
    """

    def __init__(
        self,
        *,
        warm: float = 0.0,
        basis: float = 0.0,
        window: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._warm, self._basis, self._window, self._clock = warm, basis, window, clock
        self._times: deque[tuple[float, float]] = deque(maxlen=RECENT if window is None else None)
        self._updates = 0

    def update(self, done: float) -> None:
        """So much is done now. Where it is less than before, other work has begun."""
        if self._times and done == self._times[-1][1]:
            return
        if self._times and done < self._times[-1][1]:
            self._times.clear()
            self._updates = 0
        self._updates += 1
        if self._updates == 2 or done <= self._warm:
            self._times.clear()
        self._times.append((self._clock(), done))
        if self._window is not None:
            while len(self._times) > 2 and self._times[1][1] < done - self._window:
                self._times.popleft()

    def seconds(self, rest: float) -> float | None:
        """Seconds that so much work takes; None before there is a basis."""
        if rest <= 0:
            return 0.0
        if self._updates < 3:
            return None
        (began, first), (now, done) = self._times[0], self._times[-1]
        if done - first <= 0 or done - first < self._basis:
            return None
        return (now - began) / (done - first) * rest
