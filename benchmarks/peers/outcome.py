"""What one whole run of any side leaves, measured the same way on all sides."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.common.timing import Clock, Sample

WARM = 5
"""First steps that a steady rate leaves out: compilation, caches, and the measuring of memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What all sides of a comparison do alike.

    Args:
        lr: highest learning rate of AdamW (β 0.9 and 0.999, ε 1e-8, no decay), cosine down to 0, no warm-up.
        batch: rows per step.
        clip: largest norm of the gradient.
        seed: of order and initialisation.
        dropout: in front of the adapters.
    """

    lr: float = 1e-3
    batch: int = 16
    clip: float = 1.0
    seed: int = 0
    dropout: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run.

    Args:
        whole: time of the training call.
        steps: time of every step, in order.
        labelled: tokens counted by the loss, step by step.
        tokens: tokens without padding, in all.
        places: places computed, padding included, in all.
    """

    whole: Sample
    steps: list[Sample]
    labelled: list[int]
    tokens: int
    places: int

    @property
    def rate(self) -> float:
        """Labelled tokens per second of the whole call."""
        return sum(self.labelled) / self.whole.wall

    @property
    def cpu_rate(self) -> float:
        """Labelled tokens per second of CPU time of the whole call."""
        return sum(self.labelled) / self.whole.cpu

    @property
    def steady(self) -> float:
        """Labelled tokens per second without the first steps."""
        skip = min(WARM, len(self.steps) // 2)
        return sum(self.labelled[skip:]) / sum(s.wall for s in self.steps[skip:])

    def facts(self) -> dict[str, Any]:
        """For the result file."""
        return {
            "seconds": round(self.whole.wall, 3),
            "cpu_seconds": round(self.whole.cpu, 3),
            "steps": len(self.steps),
            "labelled": sum(self.labelled),
            "tokens": self.tokens,
            "places": self.places,
            "labelled_per_second": round(self.rate, 1),
            "labelled_per_second_steady": round(self.steady, 1),
        }


@dataclass(slots=True)
class Tape:
    """Collects an outcome while a run goes."""

    labelled: list[int] = field(default_factory=list)
    tokens: int = 0
    places: int = 0
    steps: list[Sample] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)

    def count(self, *, labelled: int, tokens: int, places: int) -> None:
        """What one batch holds."""
        self.labelled.append(labelled)
        self.tokens += tokens
        self.places += places

    def step(self) -> None:
        """A step is over."""
        self.steps.append(self.clock.lap())

    def outcome(self, whole: Sample) -> Outcome:
        """All of it. Batches that were fetched and not trained on, as of accumulation, are merged into steps."""
        per = len(self.labelled) // max(1, len(self.steps)) or 1
        merged = [sum(self.labelled[i : i + per]) for i in range(0, len(self.labelled), per)]
        if len(merged) != len(self.steps):  # the last step had fewer batches
            extra = merged[len(self.steps) :]
            merged = [*merged[: len(self.steps) - 1], merged[len(self.steps) - 1] + sum(extra)]
        return Outcome(whole=whole, steps=self.steps, labelled=merged, tokens=self.tokens, places=self.places)
