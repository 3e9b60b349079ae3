"""How close a definition must come to a number to have reproduced it: closer than chance explains.

A number x is compared with many definitions. Had it been drawn at random near its value, evenly from

    W = [x − |x|/10, x + |x|/10]

it would still lie within a tolerance of some of them. What may be accepted is therefore decided by how many
definitions are tried and how their values spread over W. Definitions are sorted into levels by how far they depart
from what the tool is known to do. Level i may add at most

    α_i · |W|,   α_0 = 0.35 %,   α_i = (0.2 % − what levels 1 … i − 1 use) / 2,   α = Σ α_i ≤ 0.55 %

to the length of all accepted intervals together: its tolerances t_k are scaled down by the largest s ≤ 1 with

    | ∪_{j < i} accepted  ∪  ∪_{k in level i} [v_k − s·t_k, v_k + s·t_k] |  ≤  (used by levels j < i + α_i) · |W|

Definitions of one value count once. A number that was drawn at random is accepted with probability at most α, however
many definitions are tried.

Where precision alone (few printed digits) makes the tolerance of the likeliest definition too wide for that, a match
proves nothing; it is reported as consistent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FIRST, LATER = 0.0035, 0.002
"""Probability with which a random number is accepted for one of the likeliest definitions, and for any other.

The likeliest few use theirs only where a number has few digits: one with all of them is accepted with about 0.2 %.
"""

ALPHA = FIRST + LATER
"""Probability with which a random number near the true one is accepted at most; the target is 1 %."""

NEIGHBOURHOOD = 0.1
"""Half the width of W as a share of the number."""

HALVINGS = 40
"""Steps of the search for s."""


def accepted_tolerances(
    number: float, values: Sequence[float], precision: Sequence[float], levels: Sequence[float]
) -> np.ndarray:
    """The tolerance of each definition.

    Args:
        number: x.
        values: v_k, [K].
        precision: t_k, what rounding alone would allow, [K].
        levels: how far each departs from what the tool does; the lowest first.

    Returns:
        s·t_k of each, [K]; the differences |v_k − x| of what is reproduced are at most that.

    >>> one = accepted_tolerances(2.0, [2.00001], [4e-5], [0])
    >>> float(one[0])
    4e-05
    >>> many = accepted_tolerances(2.0, np.linspace(1.8, 2.2, 1000), [4e-5] * 1000, [0] * 1000)
    >>> bool((many < 1e-6).all())
    True
    """
    v, t, level = np.asarray(values, float), np.asarray(precision, float), np.asarray(levels)
    half = NEIGHBOURHOOD * abs(number)
    low, high = number - half, number + half
    tolerance = np.zeros(len(v))
    used = first = 0.0
    for rank, each in enumerate(np.unique(level)):
        chosen = level == each
        room = used + 2 * half * FIRST if not rank else used + (first + 2 * half * LATER - used) / 2
        before = (v - tolerance)[level < each], (v + tolerance)[level < each]

        def length(scale: float, mine: np.ndarray = chosen, before: tuple = before) -> float:
            reach = scale * t[mine]
            starts = np.concatenate([before[0], v[mine] - reach])
            ends = np.concatenate([before[1], v[mine] + reach])
            return covered_length(starts, ends, low, high)

        scale = 1.0
        if length(1.0) > room:
            bottom, top = 0.0, 1.0
            for _ in range(HALVINGS):
                scale = (bottom + top) / 2
                bottom, top = (scale, top) if length(scale) <= room else (bottom, scale)
            scale = bottom
        tolerance[chosen] = scale * t[chosen]
        used = length(scale)
        first = first if rank else used
    return tolerance


def covered_length(starts: np.ndarray, ends: np.ndarray, low: float, high: float) -> float:
    """Length of the union of intervals within [low, high].

    >>> covered_length(np.array([0.0, 1.0, 5.0]), np.array([2.0, 3.0, 9.0]), 0.0, 6.0)
    4.0
    """
    starts, ends = np.clip(starts, low, high), np.clip(ends, low, high)
    order = np.argsort(starts)
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    if not len(starts):
        return 0.0
    reached = np.concatenate([[low], ends[:-1]])
    return float(np.maximum(ends - np.maximum(starts, reached), 0).sum())
