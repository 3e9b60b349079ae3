"""What a study tries: the grid of learning rates with its extensions, and the seeds that its own seed draws."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from loratlas.study.spec.study_spec import StudySpec

WIDEST_FACTOR = 3.0
"""Between neighbouring rates of a list."""

APART = 1.6
"""Rates of the first round are at most this factor apart; the second round halves it in the logarithm."""

QUARTERS = 4
"""Positions from one rate of the grid to the next: the second round stands on every other, or on each."""

FEWEST_NEAR = 3
"""Tuning seeds around an optimum."""


def candidates(spec: StudySpec) -> tuple[float, ...]:
    """The rates of the first round: the list's own ends, and between them rates evenly spaced, at most 1.6 apart.

    A list that is so already is obeyed as it is, and so is that of a demonstration.

    >>> from loratlas.study.spec.spec_file import parse_spec
    >>> spec = parse_spec({"model": "m", "data": {"train": "a", "eval": "b"}, "learning_rates": [1e-3, 2.5e-3],
    ...                    "arms": {"full": "all", "q": "q"}})
    >>> candidates(spec)
    (0.001, 0.00158114, 0.0025)
    """
    rates = spec.learning_rates
    if len(rates) < 2 or spec.demonstration:
        return rates
    width = math.log(rates[-1] / rates[0])
    gaps = max(len(rates) - 1, math.ceil(width / math.log(APART * 1.01)))
    even = [rates[0] * math.exp(width * k / gaps) for k in range(gaps + 1)]
    if gaps == len(rates) - 1 and all(abs(a / b - 1) < 0.02 for a, b in zip(even, rates, strict=True)):
        return rates
    return (rates[0], *(_rounded(rate) for rate in even[1:-1]), rates[-1])


def grid(spec: StudySpec, *, below: int, above: int) -> tuple[float, ...]:
    """The first round after so many extensions on each side. Rates are rounded to 6 digits: they print as they are.

    >>> from loratlas.study.spec.spec_file import parse_spec
    >>> spec = parse_spec({"model": "m", "data": {"train": "a", "eval": "b"}, "learning_rates": [1e-3, 1.6e-3],
    ...                    "arms": {"full": "all", "q": "q"}})
    >>> grid(spec, below=1, above=2)
    (0.000625, 0.001, 0.0016, 0.00256, 0.004096)
    """
    return _extended(candidates(spec), below, above, APART)


def listed_grid(spec: StudySpec, *, below: int, above: int) -> tuple[float, ...]:
    """The candidates of the first edition: the list as written, extended by its own factors."""
    return _extended(spec.learning_rates, below, above, WIDEST_FACTOR)


def _extended(rates: tuple[float, ...], below: int, above: int, alone: float) -> tuple[float, ...]:
    first, last, several = min(rates), max(rates), len(rates) > 1
    low = rates[1] / first if several else alone
    high = last / rates[-2] if several else alone
    lower = [_rounded(first / low**k) for k in range(below, 0, -1)]
    upper = [_rounded(last * high**k) for k in range(1, above + 1)]
    return (*lower, *rates, *upper)


def spacing(rates: tuple[float, ...]) -> float:
    """The factor between neighbouring rates of a grid: its geometric mean."""
    return (rates[-1] / rates[0]) ** (1 / (len(rates) - 1)) if len(rates) > 1 else APART


def rate_at(rates: tuple[float, ...], position: int) -> float:
    """The rate at a position in quarters from the lowest of the grid; beyond its ends with the same spacing.

    >>> rate_at((0.001, 0.0016), 0), rate_at((0.001, 0.0016), 2), rate_at((0.001, 0.0016), 4)
    (0.001, 0.00126491, 0.0016)
    """
    whole, rest = divmod(position, QUARTERS)
    if rest == 0 and 0 <= whole < len(rates):
        return rates[whole]
    begin = min(max(whole, 0), len(rates) - 1)
    return _rounded(rates[begin] * spacing(rates) ** (position / QUARTERS - begin))


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
    near = (
        spec.tuning.seeds if spec.demonstration or spec.protocol == 1 else max(spec.tuning.seeds, FEWEST_NEAR)
    )
    return draw(tuning, near, 0), draw(evaluation, spec.evaluation.seeds, 2**30)
