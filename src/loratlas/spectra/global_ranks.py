"""Which singular directions of all sites to keep within a budget of parameters.

Keeping rank r_j at site j costs r_j·c_j parameters (c_j = d_out + d_in) and keeps Σ_{i≤r_j} σ_ji² of the squared
norm. By Eckart and Young this is the most that any adapter of these ranks can keep, so that the closest adapter of a
budget P solves

    max Σ_j Σ_{i≤r_j} σ_ji²    subject to    Σ_j r_j·c_j ≤ P

Within a site σ² falls, and so does σ²/c: taking directions in the order of σ²/c over all sites never asks for the
third direction of a site before its second. The first k of that order are optimal for what they cost, for any set that
costs no more has the same total of c at a smaller or equal σ²/c (the knapsack whose items may be cut). Between two such
budgets directions are taken that still fit, in the same order; what the best possible set could keep beyond that is at
most the next direction's σ²/c times what is left, and is returned as a bound. Where all sites cost alike nothing is
left, and the result is the optimum.

>>> kept = keep_largest([[3.0, 1.0], [2.0, 2.0]], [10, 10], budget=30)
>>> kept.ranks, kept.spent, kept.kept, kept.bound
((1, 2), 30, 17.0, 17.0)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRanks:
    """Ranks within a budget.

    Args:
        ranks: of each site; 0 where nothing of it is kept.
        spent: parameters.
        kept: Σ σ² of what is kept. total: Σ σ² of all.
        bound: no ranks within the budget keep more than this.
    """

    ranks: tuple[int, ...]
    spent: int
    kept: float
    total: float
    bound: float

    @property
    def distance(self) -> float:
        """‖what is cut off‖ / ‖all‖, between 0 and 1."""
        return float(np.sqrt(max(self.total - self.kept, 0.0) / self.total)) if self.total else 0.0


def keep_largest(values: Sequence[Sequence[float]], costs: Sequence[int], *, budget: int) -> KeptRanks:
    """Distribute a budget over the singular directions of all sites.

    Args:
        values: singular values of each site, largest first.
        costs: parameters of one rank at each site.
        budget: parameters in all.

    Returns:
        The ranks. A direction of size 0 is never kept, for it costs and does nothing.
    """
    sizes = [np.asarray(v, dtype=np.float64) ** 2 for v in values]
    site = np.concatenate([np.full(len(s), j) for j, s in enumerate(sizes)])
    square, cost = np.concatenate(sizes), np.asarray(costs)[site]
    # A stable order: of equal directions the first site's come first, and within a site they stay in order.
    order = np.argsort(-square / cost, kind="stable")
    ranks, closed = [0] * len(sizes), [False] * len(sizes)
    left, kept, bound = budget, 0.0, None
    for i in order:
        j = int(site[i])
        if square[i] <= 0 or closed[j]:
            continue
        if cost[i] > left:
            closed[j] = True
            if bound is None:
                bound = kept + float(square[i]) / float(cost[i]) * left
            continue
        ranks[j] += 1
        left -= int(cost[i])
        kept += float(square[i])
    return KeptRanks(
        ranks=tuple(ranks),
        spent=budget - left,
        kept=kept,
        total=float(square.sum()),
        bound=kept if bound is None else bound,
    )
