"""How studies of the first edition chose their rates: kept so that their ledgers can be read.

Every candidate with every tuning seed, the lowest mean, a grid extended for all arms where one's best lies at its edge.
Such studies are marked superseded: with candidates 2.5 apart and a steep curve, most of their small differences are
differences of how far each arm's grid misses its optimum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loratlas.study.execution.ledger import Key
from loratlas.study.execution.schedule_state import BASE, Schedule, nll
from loratlas.study.spec.rates_and_seeds import listed_grid, seeds
from loratlas.study.spec.study_spec import StudySpec


def _mean_by_rate(
    finished: Mapping[Key, Mapping[str, Any]], arm: str, rates: tuple[float, ...], tuning: tuple[int, ...]
) -> list[float]:
    """Mean tuning loss of an arm at each rate; a rate at which any seed diverged counts as infinite."""
    return [
        sum(nll(finished[Key(phase="tuning", arm=arm, lr=lr, seed=seed)]) for seed in tuning) / len(tuning)
        for lr in rates
    ]


def first_edition(spec: StudySpec, finished: Mapping[Key, Mapping[str, Any]]) -> Schedule:
    """What a study of the first edition would need next.

    Args:
        spec: the study.
        finished: record of every finished run; ``nll`` and ``diverged`` are read.
    """
    tuning, evaluation = seeds(spec)
    below = above = 0
    while True:
        rates = listed_grid(spec, below=below, above=above)
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
        best = {arm: _best(_mean_by_rate(finished, arm, rates, tuning)) for arm in spec.arms}
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
    """Index of the smallest mean; the lowest rate wins a tie, also one of infinities."""
    return min(range(len(means)), key=lambda index: (means[index], index))
