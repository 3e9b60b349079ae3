"""When a run decides about its placement, and how many parameters it may have afterwards."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from loratlas.errors import SettingsError

LEAST = 4
"""Steps that a head must have: two halves of two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionSchedule:
    """One decision at the end of the head, or one every so many steps from there until a part of the run is over.

    Args:
        head: steps before the first decision, as a share of the run below 1, or as a count.
        every: steps between later decisions; None for one decision in all.
        until: share of the run after which nothing is decided any more.
        peak: parameters at the start over those at the end, 1 to 1.5. From decision to decision the budget falls,
            b_i = b + (peak − 1) b (1 − i/n)³, i = 1 … n, as AdaLoRA's does (arXiv:2303.10512, equation 12).

    Raises:
        SettingsError: a value out of range.

    Example:
        >>> DecisionSchedule().steps(200), DecisionSchedule(head=0.1, every=30).steps(200)
        ((20,), (20, 50, 80))
        >>> [DecisionSchedule(every=30, peak=1.5).allowed(1000, i, 3) for i in (1, 2, 3)]
        [1148, 1018, 1000]
    """

    head: float = 0.1
    every: int | None = None
    until: float = 0.5
    peak: float = 1.0

    def __post_init__(self) -> None:
        if not self.head > 0 or (self.head >= 1 and self.head != int(self.head)):
            raise SettingsError(
                given=f"--head {self.head:g}",
                found="neither a share nor a count of steps",
                instead="--head 10%",
            )
        if self.every is not None and self.every < 1:
            raise SettingsError(
                given=f"--decide every={self.every}", found="no count of steps", instead="--decide every=50"
            )
        if not 0 < self.until <= 1:
            raise SettingsError(
                given=f"until = {self.until:g}", found="no share of a run", instead="until = 0.5"
            )
        if not 1 <= self.peak <= 1.5:
            raise SettingsError(
                given=f"peak = {self.peak:g}",
                found="a start of fewer parameters than the end, or of more than half as many again",
                instead="1 to 1.5",
            )

    def head_steps(self, steps: int) -> int:
        """Steps before the first decision of a run of so many.

        Raises:
            SettingsError: the head leaves nothing of the run, or is too short to say anything.
        """
        head = max(LEAST, round(self.head * steps)) if self.head < 1 else int(self.head)
        if head >= steps:
            raise SettingsError(
                given=f"a head of {_steps(head)}",
                found=f"a run of {_steps(steps)}",
                instead=f"--steps {10 * LEAST} or more, or a placement in words, such as all:8"
                if steps <= LEAST
                else f"--head {max(LEAST, steps // 10)}",
            )
        if head < LEAST:
            raise SettingsError(
                given=f"a head of {_steps(head)}",
                found="too few to tell a site's signal from noise",
                instead=f"--head {LEAST} or more",
            )
        return head

    def steps(self, steps: int) -> tuple[int, ...]:
        """Steps after which something is decided, in a run of so many."""
        head = self.head_steps(steps)
        if self.every is None:
            return (head,)
        return (head, *range(head + self.every, int(self.until * steps) + 1, self.every))

    def allowed(self, final: int, index: int, decisions: int) -> int:
        """Parameters after a decision.

        Args:
            final: at the end.
            index: of the decision, from 1.
            decisions: in all.
        """
        return final + int((self.peak - 1) * final * (1 - index / decisions) ** 3)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"head": self.head, "every": self.every, "until": self.until, "peak": self.peak}


def parse_head(text: str | float | None) -> float:
    """A head as people write it: "10%", "0.1" or "20" (steps).

    >>> parse_head("10%"), parse_head("20"), parse_head(None)
    (0.1, 20.0, 0.1)
    """
    if text is None:
        return 0.1
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        return float(text)
    read = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", str(text))
    if read is None or not float(read[1]):
        raise SettingsError(
            given=f"--head {text}", found="neither a share nor a count of steps", instead="--head 10%"
        )
    if not read[2]:
        return float(read[1])
    if float(read[1]) >= 100:  # as a number it would be read as a count of steps
        raise SettingsError(
            given=f"--head {text}", found="a share that leaves nothing of the run", instead="--head 10%"
        )
    return float(read[1]) / 100


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"


def parse_every(text: str | int | None) -> int | None:
    """When else to decide, as people write it: "every=50".

    >>> parse_every("every=50"), parse_every("once"), parse_every(None)
    (50, None, None)
    """
    if text is None or text == "once":
        return None
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    read = re.fullmatch(r"\s*every\s*=\s*(\d+)\s*", str(text))
    if read is None:
        raise SettingsError(
            given=f"--decide {text}", found="not understood", instead="--decide once, or --decide every=50"
        )
    return int(read[1])
