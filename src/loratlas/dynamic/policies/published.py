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
from loratlas.dynamic.policies.base import Policy
from loratlas.dynamic.run_evidence import Evidence

WEAKEST, EXCHANGED = 2, 4
"""ElaLoRA's k and b, and FlexLoRA's b."""


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
    """The weakest directions of all sites are compared: the least important of them go, and the sites of the most
    important gain ranks.

    Importance S as in `AdaLoraRule`. Of every site its `WEAKEST` least important directions, one less than its rank at
    most, come together; the `EXCHANGED` lowest of these are dropped, and the sites of the `EXCHANGED` highest get a
    rank for each. Of rank 1 nothing moves.

    Source: ElaLoRA, arXiv:2504.00254, with the numbers of the authors' public code. Departures: see the head of this
    file; gains end where parameters do, since theirs counts directions and here they differ in price.
    """

    name = "elalora"
    needs = frozenset({"sensitivity"})

    def decide(self, evidence: Evidence, *, allowed: int, most: int) -> Decided:
        scores = evidence.directions.get("sensitivity", {})
        pool = sorted(
            (score, path)
            for path, own in scores.items()
            for score in sorted(own)[: min(WEAKEST, evidence.ranks[path] - 1)]
        )
        down = [path for _, path in pool[:EXCHANGED]]
        up = [path for _, path in reversed(pool[-EXCHANGED:])]
        return _exchanged(evidence, down, up, allowed, "its weakest directions matter more than others'")


@final
class FlexLoraRule(Policy):
    """Ranks go from the sites whose update lies in few directions to those where it is spread.

        H = −Σ_i p_i ln p_i / ln r,   p_i = σ_i²/Σ_j σ_j²,   σ the r singular values of the site's ΔW

    At each decision the `EXCHANGED` sites of the lowest H lose a rank, of those that have more than one, and the
    `EXCHANGED` of the highest gain one. Of rank 1 every H is 0 and nothing moves.

    Source: FlexLoRA, arXiv:2601.22905, with the numbers of the authors' public code. Departures: see the head of this
    file; new directions begin with B = 0, as theirs begin without an effect; gains end where parameters do.
    """

    name = "flexlora"

    def decide(self, evidence: Evidence, *, allowed: int, most: int) -> Decided:
        entropies = {path: entropy(own) for path, own in evidence.spectra.items() if evidence.ranks[path]}
        order = sorted(entropies, key=lambda path: entropies[path])
        if not order or entropies[order[0]] == entropies[order[-1]]:
            return Decided(ranks=dict(evidence.ranks), reasons={}, gains={}, note="all spectra are alike")
        down = [path for path in order if evidence.ranks[path] > 1][:EXCHANGED]
        up = list(reversed(order[-EXCHANGED:]))
        return _exchanged(evidence, down, up, allowed, "the entropy of its spectrum is among the highest")


def entropy(sigma: Sequence[float]) -> float:
    """H of singular values over that of equal ones, 0 to 1.

    >>> entropy([1.0, 1.0, 1.0]), entropy([3.0, 0.0]), entropy([2.0])
    (1.0, 0.0, 0.0)
    """
    energies = [value * value for value in sigma]
    total = sum(energies)
    shares = [energy / total for energy in energies if energy > 0] if total else []
    if len(sigma) < 2:
        return 0.0
    return round(-sum(share * math.log(share) for share in shares) / math.log(len(sigma)), 12) + 0.0


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


def _exchanged(evidence: Evidence, down: Sequence[str], up: Sequence[str], allowed: int, why: str) -> Decided:
    """Take a rank for each site named in ``down`` and, as far as parameters allow, give one for each in ``up``."""
    prices, limits = evidence.prices, evidence.limits
    ranks = dict(evidence.ranks)
    for path in down:
        ranks[path] -= 1
    free = allowed - sum(prices[path] * rank for path, rank in ranks.items())
    for path in up:
        if prices[path] <= free and ranks[path] < limits[path]:
            ranks[path] += 1
            free -= prices[path]
    reasons = {
        path: why if rank > evidence.ranks[path] else "its directions are among the least important"
        for path, rank in ranks.items()
        if rank != evidence.ranks[path]
    }
    return Decided(ranks=ranks, reasons=reasons, gains={})
