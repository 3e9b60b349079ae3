"""When a learning rate that shares the head of a run is worse than another, and what trying rates may cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loratlas.training.settings import Settings

SHARE = 0.1
"""Most steps that rates which do not go on may take, as a share of the run's."""

FEWEST = 4
"""Steps of a head: in fewer, a rate that is too high does not show."""

MARGIN = 0.05
"""Nats by which two mean losses differ at least before one rate is worse than the other."""

FAR = 0.25
"""Nats by which two steps in a row may exceed the best rate's before a rate is given up without its whole head."""


def warm_steps(settings: Settings, steps: int) -> int:
    """Steps in which the rate rises."""
    return math.ceil(settings.warmup * steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchBudget:
    """What a search may cost.

    Args:
        head: steps that a rate is tried for, unless it is given up before.
        most: steps that rates may take which do not go on.
        warm: of the head, steps in which the rate still rises.
    """

    head: int
    most: int
    warm: int

    @classmethod
    def of(cls, settings: Settings, steps: int) -> SearchBudget | None:
        """Of a run of so many steps; None where a single other rate takes all that `SHARE` allows, or more.

        >>> from loratlas.training.settings import Settings
        >>> SearchBudget.of(Settings(), 100), SearchBudget.of(Settings(), 30)
        (SearchBudget(head=5, most=10, warm=3), None)
        """
        most, warm = int(SHARE * steps), warm_steps(settings, steps)
        others = 2 if steps < 600 else 3
        head = max(FEWEST, warm + 2, most // others)
        return cls(head=head, most=most, warm=warm) if head < most else None


def worse(losses: Sequence[float], others: Sequence[float]) -> bool:
    """Whether one rate's losses lie above another's over the later half of the head, by more than chance:

        mean d > max(MARGIN, 2 · s(d) / √n),    d the differences step by step

    >>> worse([4.3, 4.8, 5.6, 6.0, 4.7], [4.3, 5.0, 4.3, 3.8, 4.0])
    True
    >>> worse([4.3, 5.0, 4.3, 3.8, 4.0], [4.3, 5.1, 4.1, 3.8, 4.0])
    False
    """
    half = len(others) // 2
    differences = [loss - other for loss, other in zip(losses[half:], others[half:], strict=True)]
    chance = 2 * stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    return mean(differences) > max(MARGIN, chance)


def far_behind(losses: Sequence[float], best: Sequence[float], *, warm: int) -> bool:
    """Whether a rate can be given up before its head is over: two steps in a row `FAR` above the best rate's, after the
    warm-up.

    >>> far_behind([4.3, 4.8, 5.6, 6.0], [4.3, 5.0, 4.3, 3.8, 4.0], warm=3)
    True
    """
    last = len(losses)
    if last < max(warm + 1, 3):
        return False
    pairs = zip(losses[last - 2 :], best[last - 2 : last], strict=True)
    return all(loss - other > FAR for loss, other in pairs)


def long_enough(settings: Settings) -> int:
    """Steps of the shortest run in which rates can be tried."""
    return next(steps for steps in range(1, 10**6) if SearchBudget.of(settings, steps) is not None)
