"""Rank rules of the literature, as published, on the factors that this project trains.

They all write ΔW = P Λ Q with trained singular values; here there are two factors and no Λ. What they say of a triplet
is said of a direction: a row of A with its column of B. Dropped directions are the smallest of the site's ΔW, so that
what is left is the closest adapter of that rank, and not the masked one. Their orthogonality penalties are left out:
the loss stays the loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import final

from loratlas.dynamic.moves import Decided
from loratlas.dynamic.policies.base import CEILING, Policy
from loratlas.dynamic.run_evidence import Evidence


@final
class AdaLoraRule(Policy):
    """The most sensitive directions of all sites stay, the others go.

        I = |w ∂L/∂w|,  Ī ← β Ī + (1 − β) I,  Ū ← β Ū + (1 − β) |I − Ī|,  s = Ī Ū     (β = 0.85)
        S of a direction = mean of s over its row of A + mean of s over its column of B

    It only takes away: a run begins with 1.5 times the parameters, and the budget falls.

    Source: Zhang et al. 2023, arXiv:2303.10512, equations 7 to 11. Departures: see the head of this file; the budget
    counts parameters where theirs counts directions.
    """

    name = "adalora"
    needs = frozenset({"sensitivity"})
    peak = 1.5

    def decide(self, evidence: Evidence, *, allowed: int, most: int) -> Decided:
        return _best_directions(evidence, evidence.directions.get("sensitivity", {}), allowed)


@final
class IguLoraRule(Policy):
    """The directions whose sensitivity is largest against its own spread stay, the others go.

        s = (Ī + ε)/(Ū + ε),  ε = 10⁻⁶, Ī and Ū as in `AdaLoraRule`; S as there

    Source: IGU-LoRA, arXiv:2603.13792, and the authors' public code for s. Departure: their I is an integral of
    gradients along the path from 0 to the weight; this is its rule with one node, at the weight, which costs no pass.
    """

    name = "igulora"
    needs = frozenset({"sensitivity"})
    peak = 1.5

    def decide(self, evidence: Evidence, *, allowed: int, most: int) -> Decided:
        return _best_directions(evidence, evidence.directions.get("certainty", {}), allowed)


@final
class ElaLoraRule(Policy):
    """The least important directions are dropped, and the sites of highest mean importance get as many.

    Importance S as in `AdaLoraRule`. A tenth of the directions goes at each decision, least important first, one at
    least staying at every site; what that frees is given out one rank after the other to the sites in the order of
    their mean importance.

    Source: ElaLoRA, arXiv:2504.00254. Departures: see the head of this file; the number of directions per decision is
    a constant share, theirs follows a schedule.
    """

    name = "elalora"
    needs = frozenset({"sensitivity"})

    def decide(self, evidence: Evidence, *, allowed: int, most: int) -> Decided:
        scores = evidence.directions.get("sensitivity", {})
        ranks, prices = dict(evidence.ranks), evidence.prices
        flat = sorted((score, path) for path, own in scores.items() for score in own)
        dropping = max(1, len(flat) // 10)
        free = allowed - evidence.used
        given: set[str] = set()
        for _, path in flat:
            if len(given) >= dropping and free >= 0:
                break
            if ranks[path] > 1:
                ranks[path] -= 1
                free += prices[path]
                given.add(path)
        means = {path: sum(own) / len(own) for path, own in scores.items() if own}
        order = [p for p in sorted(means, key=lambda p: -means[p]) if p not in given]
        return _given_out(evidence, ranks, order, free, "its mean importance is among the highest")


@final
class FlexLoraRule(Policy):
    """Ranks go from the sites whose update lies in few directions to those where it is spread.

        H = −Σ_i p_i ln p_i,   p_i = σ_i²/Σ_j σ_j²,   σ the singular values of the site's ΔW

    At each decision the eighth of the sites with the lowest H loses a rank, and those with the highest gain one each as
    far as that pays. Of rank 1 every H is 0 and nothing moves.

    Source: FlexLoRA, arXiv:2601.22905. Departures: see the head of this file; new directions begin with B = 0, as
    theirs begin without an effect.
    """

    name = "flexlora"

    def decide(self, evidence: Evidence, *, allowed: int, most: int) -> Decided:
        entropies = {path: entropy(own) for path, own in evidence.spectra.items() if evidence.ranks[path]}
        ranks, prices = dict(evidence.ranks), evidence.prices
        free, order = allowed - evidence.used, sorted(entropies, key=lambda p: entropies[p])
        if not order or entropies[order[0]] == entropies[order[-1]]:
            return Decided(ranks=ranks, reasons={}, gains={}, note="all spectra are alike")
        lowest = order[: max(1, len(order) // 8)]
        for path in order:
            if path not in lowest and free >= 0:
                break
            if ranks[path] > 1:
                ranks[path] -= 1
                free += prices[path]
        highest = [path for path in reversed(order) if path not in lowest][: len(lowest)]
        return _given_out(
            evidence, ranks, highest, free, "the entropy of its spectrum is among the highest", once=True
        )


def entropy(sigma: Sequence[float]) -> float:
    """H of singular values, nats.

    >>> round(entropy([1.0, 1.0]), 4), entropy([3.0, 0.0])
    (0.6931, 0.0)
    """
    energies = [value * value for value in sigma]
    total = sum(energies)
    shares = [energy / total for energy in energies if energy > 0] if total else []
    return -sum(share * math.log(share) for share in shares) + 0.0


def _best_directions(evidence: Evidence, scores: Mapping[str, Sequence[float]], allowed: int) -> Decided:
    """Drop directions, worst first, until what is left is allowed; of every site the one adapter that PEFT needs is
    the only floor."""
    ranks, prices, used = dict(evidence.ranks), evidence.prices, evidence.used
    for _, path in sorted((score, path) for path, own in scores.items() for score in own):
        if used <= allowed or sum(ranks.values()) <= 1:
            break
        if ranks[path]:
            ranks[path] -= 1
            used -= prices[path]
    changed = [path for path, rank in ranks.items() if rank != evidence.ranks[path]]
    reason = "its directions are among the least important"
    return Decided(ranks=ranks, reasons=dict.fromkeys(changed, reason), gains={})


def _given_out(
    evidence: Evidence,
    ranks: dict[str, int],
    order: Sequence[str],
    free: int,
    why: str,
    *,
    once: bool = False,
) -> Decided:
    """Give out what is free, a rank at a time, in this order and then from its beginning again."""
    prices, limits = evidence.prices, {s.path: min(s.max_rank, CEILING) for s in evidence.sites}
    going = True
    while going and free > 0:
        going = False
        for path in order:
            if prices[path] <= free and ranks[path] < limits[path]:
                ranks[path] += 1
                free -= prices[path]
                going = not once
    reasons = {
        path: why if rank > evidence.ranks[path] else "its directions are among the least important"
        for path, rank in ranks.items()
        if rank != evidence.ranks[path]
    }
    return Decided(ranks=ranks, reasons=reasons, gains={})
