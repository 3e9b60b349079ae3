"""Policies that know nothing: what any other is to be compared with."""

from __future__ import annotations

import random
from typing import final

from loratlas.dynamic.moves import Decided
from loratlas.dynamic.policies.base import Policy
from loratlas.dynamic.run_evidence import Evidence


@final
class Nothing(Policy):
    """Ranks stay as they are: a run without moves, with all else the same.

    Begun above its budget, it gives up only what the budget does not leave (`loratlas.dynamic.within_budget`).
    """

    name = "none"

    def decide(self, evidence: Evidence, *, allowed: int, most: int) -> Decided:
        return Decided(ranks=dict(evidence.ranks), reasons={}, gains={})


@final
class RandomMoves(Policy):
    """As many exchanges as the limit allows, each between sites drawn by the seed: is it the moving or the place?"""

    name = "random"

    def decide(self, evidence: Evidence, *, allowed: int, most: int) -> Decided:
        draw = random.Random(f"{evidence.seed} {evidence.step}")
        ranks, prices = dict(evidence.ranks), evidence.prices
        limits, paths = evidence.limits, list(ranks)
        draw.shuffle(paths)
        chosen = paths[: max(2, min(most, len(paths)))]
        givers, takers = chosen[::2], chosen[1::2]
        free = allowed - evidence.used
        for path in givers:
            if ranks[path] and sum(ranks.values()) > 1:
                ranks[path] -= 1
                free += prices[path]
        while takers:
            able = [p for p in takers if prices[p] <= free and ranks[p] < limits[p]]
            if not able:
                break
            path = draw.choice(able)
            ranks[path] += 1
            free -= prices[path]
        changed = [path for path, rank in ranks.items() if rank != evidence.ranks[path]]
        return Decided(ranks=ranks, reasons=dict.fromkeys(changed, "drawn at random"), gains={})
