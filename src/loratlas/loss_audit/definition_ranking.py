"""When two definitions rank two arms differently: exactly, for every pair, with the bound that rules it out.

With Δ_i = ℓ̄_i(first) − ℓ̄_i(second), two linear definitions with weights v and w say Σ v Δ and Σ w Δ. They disagree
exactly if Σ (v − w) Δ opposes Σ w Δ and exceeds it. The derivation is in docs/method/metrics.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from loratlas.errors import DataError
from loratlas.loss_audit.definitions import (
    REFERENCE,
    Definition,
    LossEvidence,
    Sums,
    aggregate,
    sums,
    weights,
)
from loratlas.loss_audit.token_table import LossTable

LINEAR = ("token", "example", "batch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """What two definitions say about two arms.

    Args:
        first: name of the one arm.
        second: name of the other.
        by: name of definition w.
        other: name of definition v.
        difference: first − second by w, nats; negative: the first is better.
        shift: Σ (v − w) Δ, what the other definition adds to it; for a median or a mean of perplexities, which have
            no weights of their own, the difference of the two arms' gaps.
        bound: no shift between these definitions can be larger for these Δ; None where the two count other tokens or
            smooth, so that Δ is not all they see.
        flips: the shift opposes the difference and exceeds it.
    """

    first: str
    second: str
    by: str
    other: str
    difference: float
    shift: float
    bound: float | None
    flips: bool


def disagreements(
    arms: Mapping[str, LossTable], definitions: Sequence[Definition], *, by: Definition | None = None
) -> list[Disagreement]:
    """Every pair of arms under every definition, against one of them.

    Args:
        arms: name → table of losses on the same examples (`LossTable.of_scores` is enough).
        definitions: v's; those of other tables or units are the caller's to leave out.
        by: w; the token mean when None.

    Raises:
        DataError: arms judged on unlike examples, or fewer than two.
    """
    if len(arms) < 2:
        raise DataError(given=f"{len(arms)} arm(s) to rank", found="no pair", instead="two or more")
    by = by or Definition(name="token_mean")
    pairs: list[Disagreement] = []
    for other in definitions:
        seen = {name: (_sums(by, table), _sums(other, table)) for name, table in arms.items()}
        for first, second in combinations(arms, 2):
            pairs.append(_compare(first, second, by, other, seen))
    return pairs


def _sums(definition: Definition, table: LossTable) -> Sums:
    return sums(definition, LossEvidence(tables={definition.table: table, REFERENCE: table}))


def _compare(
    first: str, second: str, by: Definition, other: Definition, seen: Mapping[str, tuple[Sums, Sums]]
) -> Disagreement:
    (a, a2), (b, b2) = seen[first], seen[second]
    if not (np.array_equal(a.example, b.example) and np.array_equal(a.n, b.n)):
        raise DataError(
            given=f"arms {first!r} and {second!r}",
            found="they were not judged on the same tokens",
            instead="losses of the same rows with the same tokenizer",
        )
    difference = aggregate(by, a) - aggregate(by, b)
    bound = None
    same = np.array_equal(a.n, a2.n) and np.array_equal(a.example, a2.example) and (a.n > 0).all()
    plain = same and not by.smoothing and not other.smoothing
    delta = (a.nll - b.nll) / a.n if plain else np.zeros(0)
    if plain and by.aggregate in LINEAR and other.aggregate in LINEAR:
        weight_shift = weights(other, a) - weights(by, a)
        shift, bound = float((weight_shift * delta).sum()), shift_bound(weight_shift, delta)
    else:
        shift = (aggregate(other, a2) - aggregate(by, a)) - (aggregate(other, b2) - aggregate(by, b))
        bound = range_bound(difference, delta) if plain else None
    return Disagreement(
        first=first,
        second=second,
        by=by.name,
        other=other.name,
        difference=difference,
        shift=shift,
        bound=bound,
        flips=bool(difference * (difference + shift) < 0),
    )


def range_bound(difference: float, delta: np.ndarray) -> float:
    """Largest shift to *any* aggregate that grows with every loss and moves with a constant added to all of them.

    Means of all weights, the median and the log of the mean exponential are such: f(b + Δ) lies between f(b) + min Δ
    and f(b) + max Δ, so the second difference lies in [min Δ, max Δ] and the shift in [min Δ − D, max Δ − D]. An arm
    that is ahead on every example is ahead by all of them.

    Args:
        difference: D by the first definition, nats.
        delta: Δ, [N], nats.

    >>> round(range_bound(-0.2, np.array([-0.5, 0.1])), 3)
    0.3
    """
    return float(max(delta.max() - difference, difference - delta.min()))


def shift_bound(weight_shift: np.ndarray, delta: np.ndarray) -> float:
    """Largest |Σ (v − w) Δ| that the spread of Δ allows: the smaller of two bounds.

    * ½ ‖v − w‖₁ · (max Δ − min Δ), for Σ (v − w) = 0;
    * √(N Σ (v − w)²) · sd(Δ), Cauchy and Schwarz. For token against example mean it is CV(n) · sd(Δ), with the
      coefficient of variation of the examples' lengths.

    Args:
        weight_shift: v − w, [N].
        delta: Δ, [N], nats.

    >>> round(shift_bound(np.array([0.1, -0.1]), np.array([1.0, 0.0])), 3)
    0.1
    """
    spread = float(np.abs(weight_shift).sum() / 2 * (delta.max() - delta.min()))
    return min(spread, float(np.sqrt(len(weight_shift) * (weight_shift**2).sum()) * delta.std()))
