"""One run that says how every shorter run would have ended.

A run at a constant learning rate is the **trunk**. Runs of T steps differ only in where they leave it: at step
0.9 · T a copy of weights and moments decays to 0 over the last tenth, is evaluated example by example and thrown away;
the trunk goes on as if nothing had happened (warm-up, stable, decay: arXiv:2404.06395, section 4). A curve over
25, 50, 100, 200 and 400 steps so costs 438 steps instead of 775.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from loratlas.training.run_events import StepEvent
from loratlas.training.run_hooks import RunHook

DECAY = 0.1
"""Share of a run's steps in which its rate falls linearly to 0."""

WARMUP = 8
"""Steps in which the rate rises; the same for every length, since lengths share them."""


def trunk_steps(length: int) -> int:
    """Steps at the constant rate of a run of so many.

    >>> [trunk_steps(length) for length in (25, 50, 100, 400)]
    [22, 45, 90, 360]
    """
    return length - math.ceil(DECAY * length)


def decayed(lr: float, step: int, steps: int) -> float:
    """Rate of a step (from 0) of the decay: lr · (1 − (step + 1) / (steps + 1)).

    >>> [round(decayed(1.0, step, 3), 2) for step in range(3)]
    [0.75, 0.5, 0.25]
    """
    return lr * (1 - (step + 1) / (steps + 1))


class Branches(RunHook):
    """Leaves the trunk at the right steps, decays, evaluates, and puts everything back.

    Args:
        lengths: T of the runs, rising.
        order: rows of all steps [≥ the longest T, batch]; decays take the rows that the trunk would take next.
        evaluate: a model → summed loss of every example [N], nats.
        watch: called with (T, what was measured) after every branch.

    Attributes:
        points: T → ``{"nll": [N], "trainable": int, "seconds": of the run so far, branches excluded}``.
    """

    name = "branches"

    def __init__(
        self,
        lengths: Sequence[int],
        order: np.ndarray,
        evaluate: Callable[[Any], np.ndarray],
        watch: Callable[[int, dict[str, Any]], object] = lambda length, point: None,
    ) -> None:
        self.lengths, self._order, self._evaluate, self._watch = tuple(lengths), order, evaluate, watch
        self.points: dict[int, dict[str, Any]] = {}
        self._seconds = 0.0

    def identity(self) -> dict[str, Any]:
        return {"lengths": list(self.lengths)}

    def after_step(self, run: Any, event: StepEvent) -> None:
        self._seconds = event.seconds  # of steps since the run began, over resumptions too
        for length in self.lengths:
            if trunk_steps(length) == run.counters.done and length not in self.points:
                self.points[length] = self._branch(run, length)
                self._watch(length, self.points[length])

    def _branch(self, run: Any, length: int) -> dict[str, Any]:
        done, optimizer = run.counters.done, run.optimizer
        weights = run.masters.copy()
        moments = {name: value.clone() for name, value in optimizer.state().items()}
        settings = optimizer.settings
        begun = time.perf_counter()
        try:
            for step in range(length - done):
                gradient = run.gradients.gradient(done + step, self._order[done + step])
                norm = float(run.masters.norm())
                if not (math.isfinite(gradient.nll) and math.isfinite(norm)):
                    break
                optimizer.settings = replace(
                    settings, lr=decayed(settings.lr, step, length - done), schedule="constant", warmup=0.0
                )
                optimizer.update(done + step, norm)
            decay_seconds = time.perf_counter() - begun
            nll = self._evaluate(run.model)
        finally:
            optimizer.settings = settings
            run.masters.restore(weights)
            optimizer.load(moments, done)
        return {
            "nll": [round(float(value), 4) for value in nll],
            "trainable": sum(view.numel() for _, view in run.masters.named()),
            "seconds": round(self._seconds + decay_seconds, 2),
        }

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {}, {
            "points": {str(length): point for length, point in self.points.items()},
            "seconds": self._seconds,
        }

    def load_state(self, run: Any, tensors: dict[str, Any], values: dict[str, Any]) -> None:
        self.points = {int(length): point for length, point in values.get("points", {}).items()}
        self._seconds = float(values.get("seconds", 0.0))
