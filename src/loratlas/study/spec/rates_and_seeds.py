"""What a study tries: the grid of learning rates with its extensions, and the seeds that its own seed draws."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from loratlas.study.spec.study_spec import StudySpec

WIDEST_FACTOR = 3.0
"""Between neighbouring rates: the best rate may lie between rates that are further apart."""


def grid(spec: StudySpec, *, below: int, above: int) -> tuple[float, ...]:
    """The candidates after so many extensions on each side, by the spec's own factor at that edge.

    The factor of a single rate is 3. Rates are rounded to 6 significant digits: they print as they are.

    >>> from loratlas.study.spec.spec_file import parse_spec
    >>> spec = parse_spec({"model": "m", "data": {"train": "a", "eval": "b"}, "learning_rates": [1e-3, 3e-3],
    ...                    "arms": {"full": "all", "q": "q"}})
    >>> grid(spec, below=1, above=2)
    (0.000333333, 0.001, 0.003, 0.009, 0.027)
    """
    rates: list[float] = list(spec.learning_rates)
    low = rates[1] / rates[0] if len(rates) > 1 else WIDEST_FACTOR
    high = rates[-1] / rates[-2] if len(rates) > 1 else WIDEST_FACTOR
    lower = [_rounded(rates[0] / low**k) for k in range(below, 0, -1)]
    upper = [_rounded(rates[-1] * high**k) for k in range(1, above + 1)]
    return (*lower, *rates, *upper)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}") if math.isfinite(value) else value


def seeds(spec: StudySpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tuning seeds and evaluation seeds, disjoint, drawn from the master seed.

    More seeds of one kind leave the first ones as they are.
    """

    def draw(stream: np.random.SeedSequence, count: int, first: int) -> tuple[int, ...]:
        random = np.random.Generator(np.random.PCG64(stream))
        drawn: dict[int, None] = {}
        while len(drawn) < count:
            drawn[first + int(random.integers(0, 2**30))] = None
        return tuple(drawn)

    # Tuning seeds lie in [0, 2³⁰) and evaluation seeds in [2³⁰, 2³¹): never the same number.
    tuning, evaluation = np.random.SeedSequence(spec.seed).spawn(2)
    return draw(tuning, spec.tuning.seeds, 0), draw(evaluation, spec.evaluation.seeds, 2**30)
