"""What is to be done next, as a pure function of the spec and the finished runs.

1. The bare base, once.
2. **First round**: the same candidates for every arm, at most 1.6 apart, one seed. An arm whose best rate lies at an
   end extends the grid of *all* arms by the same factor.
3. **Second round**: rates half as far apart (1.26) around each arm's best. The middle moves to whichever of the three
   is best, at most `MOVES` times with the first seed and `MOVES` times with all of them. A neighbour that diverged, or
   came out above the bare base, is an edge: the distance is halved once; where that does not help, and where the
   middle would still move at the end in every seed, the finding is undetermined.
4. The vertex of each arm's losses (:mod:`loratlas.study.execution.rate_choice`) is its rate. There it is trained on the
   fresh evaluation seeds; the reference also for half and for one and a half times the steps, which is what steps saved
   are read from, and for the steps that choosing took where an arm was placed by a scan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from loratlas.study.execution.first_edition import first_edition
from loratlas.study.execution.ledger import Key
from loratlas.study.execution.rate_choice import choose
from loratlas.study.execution.schedule_state import BASE, Schedule, nll
from loratlas.study.spec.rates_and_seeds import QUARTERS, grid, rate_at, seeds, spacing
from loratlas.study.spec.study_spec import StudySpec

MOVES = 3
"""How often the middle of an arm's three rates may move, with the first seed and once more with all of them."""

CURVE_SEEDS = 2
"""Evaluation seeds of the reference's curve of loss against steps."""

SCAN_ROWS = 16
"""Rows of the steps that a scan's cost is counted in."""

NEAR = 3
"""Rates around an optimum."""


def schedule(spec: StudySpec, finished: Mapping[Key, Mapping[str, Any]], *, extra_steps: int = 0) -> Schedule:
    """What a study needs next.

    Args:
        spec: the study.
        finished: record of every finished run; ``nll`` and ``diverged`` are read.
        extra_steps: training steps that a scan of the study took; the reference is also trained for them.
    """
    if spec.protocol == 1:
        return first_edition(spec, finished)
    tuning, evaluation = seeds(spec)
    rates, first_round = _first_round(spec, finished, tuning[0])
    wanted = [BASE, *first_round]
    later = len(spec.arms) * (NEAR * len(tuning) - 1 + len(evaluation)) + len(
        _reference_runs(spec, 1.0, evaluation, extra_steps)
    )
    left = tuple(key for key in wanted if key not in finished)
    if left:
        return Schedule(
            pending=left, planned=len(wanted) + later, rates=rates, chosen={}, at_edge=frozenset()
        )
    walks = [_Walk(spec, finished, arm, rates, tuning) for arm in spec.arms]
    known = set(wanted)
    # Seeds outside, arms inside: an interrupted study has compared as many arms as possible.
    asked = sorted(
        (key for walk in walks for key in walk.asked if key not in known), key=_by_seed(spec, tuning)
    )
    left = tuple(key for key in asked if key not in finished)
    if left:
        planned = max(len(wanted) + later, len(wanted) + len(asked))
        return Schedule(pending=left, planned=planned, rates=rates, chosen={}, at_edge=frozenset())
    losses = {walk.arm: walk.losses for walk in walks}
    decided = choose(np.stack(list(losses.values())), np.array([walk.gap for walk in walks]))
    chosen = {
        walk.arm: float(f"{walk.middle * math.exp(float(shift)):.3g}")
        for walk, shift in zip(walks, decided.shift, strict=True)
    }
    wanted += asked
    wanted += [
        Key(phase="evaluation", arm=arm, lr=chosen[arm], seed=seed)
        for seed in evaluation
        for arm in spec.arms
    ]
    wanted += _reference_runs(spec, chosen[spec.reference], evaluation, extra_steps)
    return Schedule(
        pending=tuple(key for key in wanted if key not in finished),
        planned=len(wanted),
        rates=rates,
        chosen=chosen,
        at_edge=frozenset(walk.arm for walk in walks if walk.open),
        near={walk.arm: walk.rates for walk in walks},
        near_losses=losses,
        share={walk.arm: float(share) for walk, share in zip(walks, decided.share, strict=True)},
    )


def curve_steps(steps: int) -> tuple[int, ...]:
    """Lengths of the reference's other runs: half and one and a half times the steps.

    >>> curve_steps(200), curve_steps(1)
    ((100, 300), (2,))
    """
    return tuple(sorted({max(1, steps // 2), math.ceil(1.5 * steps)} - {steps}))


def scan_steps(scan: Mapping[str, Any] | None, batch_size: int) -> int:
    """What a study's scan cost, in training steps of this batch; a scan counts steps of 16 rows.

    >>> scan_steps({"cost_in_steps": 160.0}, 16), scan_steps(None, 16)
    (160, 0)
    """
    return 0 if scan is None else math.ceil(scan["cost_in_steps"] * SCAN_ROWS / batch_size)


def _reference_runs(spec: StudySpec, lr: float, evaluation: tuple[int, ...], extra: int) -> list[Key]:
    """The reference at other lengths: on two seeds for its curve, on all of them at equal compute."""
    lengths = dict.fromkeys(curve_steps(spec.steps), CURVE_SEEDS)
    if extra:
        lengths[spec.steps + extra] = len(evaluation)
    return [
        Key(phase="evaluation", arm=spec.reference, lr=lr, seed=seed, steps=steps)
        for steps, count in lengths.items()
        for seed in evaluation[:count]
    ]


def _first_round(
    spec: StudySpec, finished: Mapping[Key, Mapping[str, Any]], seed: int
) -> tuple[tuple[float, ...], list[Key]]:
    """Rates and runs of the first round, as far as its extensions are known."""
    below = above = 0
    while True:
        rates = grid(spec, below=below, above=above)
        wanted = [Key(phase="tuning", arm=arm, lr=lr, seed=seed) for lr in rates for arm in spec.arms]
        if any(key not in finished for key in wanted):
            return rates, wanted
        best = [_lowest(_tried(finished, arm, rates, seed)) for arm in spec.arms]
        more_below = 0 in best and below < spec.tuning.extensions
        more_above = len(rates) - 1 in best and above < spec.tuning.extensions
        if not (more_below or more_above):
            return rates, wanted
        below, above = below + more_below, above + more_above


def _tried(
    finished: Mapping[Key, Mapping[str, Any]], arm: str, rates: tuple[float, ...], seed: int
) -> list[float]:
    """Losses of the first round; infinite where a run diverged or came out above the bare base, unless all did."""
    losses = [nll(finished[Key(phase="tuning", arm=arm, lr=lr, seed=seed)]) for lr in rates]
    most = _most(finished, losses)
    return [math.inf if loss > most else loss for loss in losses]


def _most(finished: Mapping[Key, Mapping[str, Any]], losses: list[float]) -> float:
    """The loss of the bare base where any rate is below it; runs too short for that are all let pass."""
    base = nll(finished[BASE]) if BASE in finished else math.inf
    return base if min(losses) <= base else math.inf


def _lowest(losses: list[float]) -> int:
    """Index of the smallest; the lowest rate wins a tie, also one of infinities."""
    return min(range(len(losses)), key=lambda index: (losses[index], index))


class _Walk:
    """One arm's second round: where its three rates end, or what has to be run before that is known.

    Attributes:
        asked: runs that it needs, in order. rates: its three. losses: [3, seeds]. gap: logarithm from one to the next.
        open: whether the optimum lies beyond them.
    """

    def __init__(
        self,
        spec: StudySpec,
        finished: Mapping[Key, Mapping[str, Any]],
        arm: str,
        rates: tuple[float, ...],
        tuning: tuple[int, ...],
    ) -> None:
        self.arm, self._grid, self._finished = arm, rates, finished
        self.asked: list[Key] = []
        first = _tried(finished, arm, rates, tuning[0])
        self._at = QUARTERS * _lowest(first)
        self._most = _most(finished, first)
        self._half = QUARTERS // 2
        self.open, self.losses = False, np.full((NEAR, len(tuning)), math.inf)
        for count in dict.fromkeys((1, len(tuning))):
            if not self._settle(tuning[:count]):
                break

    @property
    def middle(self) -> float:
        return rate_at(self._grid, self._at)

    @property
    def rates(self) -> tuple[float, ...]:
        return tuple(rate_at(self._grid, self._at + side * self._half) for side in (-1, 0, 1))

    @property
    def gap(self) -> float:
        return math.log(spacing(self._grid)) * self._half / QUARTERS

    def _settle(self, seeds: tuple[int, ...]) -> bool:
        """Move until the middle is the best of three; False where runs are missing."""
        for left in range(MOVES, -1, -1):
            keys = [
                Key(phase="tuning", arm=self.arm, lr=lr, seed=seed) for lr in self.rates for seed in seeds
            ]
            self.asked += [key for key in keys if key not in self.asked]
            if any(key not in self._finished for key in keys):
                return False
            losses = np.array([nll(self._finished[key]) for key in keys]).reshape(NEAR, len(seeds))
            losses[losses > self._most] = math.inf
            self.losses = losses
            ends = ~np.isfinite(losses).all(axis=1)
            best = _middle_loss(losses)
            side = int(best.argmin()) - 1 if np.isfinite(best).any() else 0
            halved = bool(ends.any()) and side == 0 and self._half > 1
            # Still on the way in every seed, or beside a rate that diverged however near.
            self.open = bool(ends.any()) or (side != 0 and bool((losses[side + 1] < losses[1]).all()))
            if not left or (side == 0 and not halved):
                break
            if halved:
                self._half //= 2
            else:
                self._at += side * self._half
        return True


def _middle_loss(losses: np.ndarray) -> np.ndarray:
    """[3] of [3, seeds]: median over seeds without what a seed gives to all its runs; infinite where any of them is."""
    finite = np.isfinite(losses).all(axis=1)
    if not finite.any():
        return np.full(len(losses), math.inf)
    centred = losses[finite] - losses[finite].mean(axis=0)
    middles = np.full(len(losses), math.inf)
    middles[finite] = np.median(centred, axis=1)
    return middles


def _by_seed(spec: StudySpec, tuning: tuple[int, ...]) -> Any:
    arms, order = list(spec.arms), {seed: index for index, seed in enumerate(tuning)}
    return lambda key: (order[key.seed], key.lr, arms.index(key.arm))
