"""What is to be done next, told from what is done: a pure function of the spec and the finished runs.

First the bare base, once. Then tuning: the same candidates for every arm, every candidate with every
tuning seed. An arm whose best rate lies at the edge of the grid extends the grid of *all* arms, by the
same factor. When no edge is left (or no extension), every arm is trained again at its own rate with the
fresh evaluation seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loratlas.study.execution.ledger import Key
from loratlas.study.spec.rates_and_seeds import grid, seeds
from loratlas.study.spec.study_spec import StudySpec

BASE = Key(phase="base")


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Where a study stands.

    Args:
        pending: runs that can start now, in order.
        planned: how many runs are known to be needed by now, finished ones included.
        rates: the grid of learning rates, extensions included.
        chosen: arm → its learning rate; empty while tuning goes on.
        at_edge: arms whose best rate lies at an edge that could not be extended any more.
    """

    pending: tuple[Key, ...]
    planned: int
    rates: tuple[float, ...]
    chosen: Mapping[str, float]
    at_edge: frozenset[str]

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return not self.pending


def nll(record: Mapping[str, Any]) -> float:
    """The token mean of a finished run; infinity for a diverged one."""
    value = record.get("nll")
    return math.inf if record.get("diverged") or value is None else float(value)


def mean_by_rate(
    finished: Mapping[Key, Mapping[str, Any]], arm: str, rates: tuple[float, ...], tuning: tuple[int, ...]
) -> list[float]:
    """Mean tuning loss of an arm at each rate; a rate at which any seed diverged counts as infinite."""
    return [
        sum(nll(finished[Key(phase="tuning", arm=arm, lr=lr, seed=seed)]) for seed in tuning) / len(tuning)
        for lr in rates
    ]


def schedule(spec: StudySpec, finished: Mapping[Key, Mapping[str, Any]]) -> Schedule:
    """What a study needs next.

    Args:
        spec: the study.
        finished: record of every finished run; ``nll`` and ``diverged`` are read.
    """
    tuning, evaluation = seeds(spec)
    below = above = 0
    while True:
        rates = grid(spec, below=below, above=above)
        wanted = [BASE]
        # Seeds outside, arms inside: an interrupted study has compared as many arms as possible.
        wanted += [
            Key(phase="tuning", arm=arm, lr=lr, seed=seed)
            for seed in tuning
            for lr in rates
            for arm in spec.arms
        ]
        left = tuple(key for key in wanted if key not in finished)
        if left:
            planned = len(wanted) + len(spec.arms) * len(evaluation)
            return Schedule(pending=left, planned=planned, rates=rates, chosen={}, at_edge=frozenset())
        best = {arm: _best(mean_by_rate(finished, arm, rates, tuning)) for arm in spec.arms}
        low = {arm for arm, index in best.items() if index == 0}
        high = {arm for arm, index in best.items() if index == len(rates) - 1}
        more_below = bool(low) and below < spec.tuning.extensions
        more_above = bool(high) and above < spec.tuning.extensions
        if not (more_below or more_above):
            break
        below, above = below + more_below, above + more_above
    chosen = {arm: rates[index] for arm, index in best.items()}
    wanted += [
        Key(phase="evaluation", arm=arm, lr=chosen[arm], seed=seed)
        for seed in evaluation
        for arm in spec.arms
    ]
    return Schedule(
        pending=tuple(key for key in wanted if key not in finished),
        planned=len(wanted),
        rates=rates,
        chosen=chosen,
        at_edge=frozenset(low | high),
    )


def _best(means: list[float]) -> int:
    """Place of the smallest mean; the lowest rate wins a tie, also one of infinities."""
    return min(range(len(means)), key=lambda index: (means[index], index))
