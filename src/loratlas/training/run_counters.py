"""What a run counts: tokens, seconds, losses. Plain data, so that a checkpoint can keep it."""

from __future__ import annotations

from dataclasses import asdict
from statistics import median
from typing import Any

from loratlas.time_left import RECENT
from loratlas.training.run_events import CurvePoint, StepEvent

WARM_STEPS = 3
"""First steps of a process that its speed is not judged by (at most a quarter of the run)."""


class RunCounters:
    """Counts of one run.

    Args:
        steps: of the whole run.
        log_every: steps per point of the curve.
    """

    def __init__(self, *, steps: int, log_every: int) -> None:
        self.steps, self.log_every = steps, log_every
        self.done = self.tokens = self.labelled = 0
        self.seconds = 0.0
        self.curve: list[CurvePoint] = []
        self.last: list[
            tuple[float, int]
        ] = []  # (summed loss, counted tokens) of the last tenth of the steps
        self._since: list[tuple[float, int]] = []  # the same, since the last point of the curve
        self._here: list[tuple[float, int, int]] = []  # (seconds, tokens, counted) of this process's steps

    def add(
        self, *, nll: float, labelled: int, tokens: int, seconds: float, lr: float, norm: float
    ) -> StepEvent:
        """Count a step. ``nll`` is its summed loss."""
        self.done += 1
        self.tokens += tokens
        self.labelled += labelled
        self.seconds += seconds
        self._here.append((seconds, tokens, labelled))
        if self.done > self.steps - max(1, self.steps // 10):
            self.last.append((nll, labelled))
        self._since.append((nll, labelled))
        if self.done % self.log_every == 0 or self.done == self.steps:
            self.curve.append(
                CurvePoint(
                    step=self.done, nll=_mean(self._since), lr=lr, tokens=self.tokens, seconds=self.seconds
                )
            )
            self._since = []
        return StepEvent(
            step=self.done,
            steps=self.steps,
            nll=nll / labelled,
            lr=lr,
            norm=norm,
            tokens=self.tokens,
            labelled_tokens=self.labelled,
            tokens_per_second=self.speed()[0],
            seconds=self.seconds,
            seconds_left=self._left(),
        )

    @property
    def train_nll(self) -> float:
        """Mean loss over the counted tokens of the last tenth of the steps; of the last point where it ended before."""
        if self.last:
            return _mean(self.last)
        if self._since:
            return _mean(self._since)
        return self.curve[-1].nll if self.curve else float("nan")

    def _left(self) -> float | None:
        """Seconds that the other steps take, by the latest ones of this process; None before there is a basis."""
        if self.done >= self.steps:
            return 0.0
        recent = self._here[WARM_STEPS:][-RECENT:]
        if len(recent) < 2:
            return None
        return sum(seconds for seconds, _, _ in recent) / len(recent) * (self.steps - self.done)

    def _timed(self) -> list[tuple[float, int, int]]:
        return self._here[min(WARM_STEPS, len(self._here) // 4) :]

    def speed(self) -> tuple[float, float]:
        """Tokens and counted tokens per second of this process, after the warm-up steps."""
        timed = self._timed()
        seconds = sum(s for s, _, _ in timed)
        if not seconds:
            return 0.0, 0.0
        return sum(t for _, t, _ in timed) / seconds, sum(n for _, _, n in timed) / seconds

    def step_seconds(self) -> float:
        """Median step of this process, after the warm-up steps."""
        timed = self._timed()
        return median(s for s, _, _ in timed) if timed else 0.0

    def to_json(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "done": self.done,
            "tokens": self.tokens,
            "labelled": self.labelled,
            "seconds": self.seconds,
            "curve": [asdict(point) for point in self.curve],
            "last": self.last,
            "since": self._since,
        }

    def load_state(self, kept: dict[str, Any]) -> None:
        """Continue from what `to_json` gave."""
        self.done, self.tokens, self.labelled = kept["done"], kept["tokens"], kept["labelled"]
        self.seconds = kept["seconds"]
        self.curve = [CurvePoint(**point) for point in kept["curve"]]
        self.last = [(float(s), int(n)) for s, n in kept["last"]]
        self._since = [(float(s), int(n)) for s, n in kept["since"]]


def _mean(losses: list[tuple[float, int]]) -> float:
    return sum(s for s, _ in losses) / sum(n for _, n in losses)
