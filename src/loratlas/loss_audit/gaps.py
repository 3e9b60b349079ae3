"""The gap between two definitions, term by term, each by its own formula and never by subtraction.

A subtraction would leave nothing over by construction and prove nothing. The derivations are in docs/method/metrics.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from loratlas.errors import DataError
from loratlas.loss_audit.definitions import (
    REFERENCE,
    Definition,
    LossEvidence,
    Sums,
    aggregate,
    batches,
    example_means,
    factor,
    log_value,
    sums,
    weights,
)
from loratlas.loss_audit.token_table import PARTS, LossTable

if TYPE_CHECKING:
    from collections.abc import Iterator

ORDER = (
    "condition",
    "coverage",
    "example",
    "batch",
    "jensen",
    "median",
    "smoothing",
    "regulariser",
    "cap",
    "unit",
)
"""The kinds of terms, in the order in which a gap is taken apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GapTerm:
    """A part of a gap.

    Args:
        kind: one of `ORDER`.
        words: what it is, for people.
        nats: add it to the first definition on the way to the second.
        estimate: second-order value, where there is one.
    """

    kind: str
    words: str
    nats: float
    estimate: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Everything between two definitions.

    Args:
        first: name of the one.
        second: name of the other.
        nats: second − first, of the values before any exponential.
        terms: in the order of `ORDER`.
        residual: what the terms leave unexplained; rounding only.
    """

    first: str
    second: str
    nats: float
    terms: tuple[GapTerm, ...]
    residual: float

    @property
    def largest(self) -> GapTerm | None:
        """The term that explains most; None where the two are equal."""
        return max(self.terms, key=lambda term: abs(term.nats), default=None)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        terms = [
            {"term": t.words, "kind": t.kind, "nats": t.nats}
            | ({} if t.estimate is None else {"estimate": t.estimate})
            for t in self.terms
        ]
        return {
            "first": self.first,
            "second": self.second,
            "nats": self.nats,
            "terms": terms,
            "residual": self.residual,
        }


def decompose(first: Definition, second: Definition, evidence: LossEvidence, *, below: float = 0.0) -> Gap:
    """Take the gap between two definitions apart.

    Args:
        first: from here.
        second: to here.
        evidence: with the tables that both read.
        below: terms of at most this size are left out of the list (never out of the residual).

    Raises:
        DataError: see `loratlas.loss_audit.definitions.log_value`; tables that share a key but not its tokens.
    """
    before, after = sums(first, evidence), sums(second, evidence)
    terms = [
        *_tail(first, before, evidence, sign=-1),
        *_between(first, second, before, after, evidence),
        *_tail(second, after, evidence, sign=1),
    ]
    merged: dict[tuple[str, str], GapTerm] = {}
    for term in terms:
        key = (term.kind, term.words)
        known = merged.get(key)
        merged[key] = term if known is None else _added(known, term)
    ordered = sorted(merged.values(), key=lambda term: ORDER.index(term.kind))
    total = log_value(second, evidence) - log_value(first, evidence)
    return Gap(
        first=first.name,
        second=second.name,
        nats=total,
        terms=tuple(term for term in ordered if abs(term.nats) > below),
        residual=total - float(sum(term.nats for term in ordered)),
    )


def _added(one: GapTerm, other: GapTerm) -> GapTerm:
    estimates = (one.estimate, other.estimate)
    estimate = None if None in estimates else sum(e for e in estimates if e is not None)
    return GapTerm(kind=one.kind, words=one.words, nats=one.nats + other.nats, estimate=estimate)


def _tail(definition: Definition, summed: Sums, evidence: LossEvidence, *, sign: int) -> Iterator[GapTerm]:
    """From the token mean of what a definition covers to its value (sign 1), or back (sign −1)."""
    d = definition

    def term(kind: str, words: str, nats: float, estimate: float | None = None) -> GapTerm:
        return GapTerm(
            kind=kind,
            words=words,
            nats=sign * nats,
            estimate=None if estimate is None else sign * estimate,
        )

    if d.aggregate == "batch":
        assert d.batch_size is not None
        words = f"token mean → mean of batches of {d.batch_size}: batches with more tokens weigh more"
        yield term("batch", words, batch_term(summed, d.batch_size))
    elif d.aggregate != "token":
        yield term("example", "token mean → example mean: long examples weigh more", example_term(summed))
    if d.smoothing:
        omega = weights(d, summed)
        means = (
            example_means(summed, summed.nll) if d.aggregate != "token" and d.aggregate != "batch" else None
        )
        if means is None:
            n = np.where(summed.n > 0, summed.n, 1.0)
            pull = float((omega * (summed.uniform - summed.nll) / n).sum())
        else:
            pull = float((omega * (summed.uniform / summed.n - means)).sum())
        yield term("smoothing", f"label smoothing of {d.smoothing:g}", d.smoothing * pull)
    if d.aggregate == "log_mean_exp":
        nats, estimate = jensen_term(example_means(summed, summed.smoothed(d.smoothing)))
        yield term("jensen", "mean of examples' perplexities: Jensen's gap", nats, estimate)
    if d.aggregate == "median":
        skew = median_term(example_means(summed, summed.smoothed(d.smoothing)))
        yield term("median", "example mean → median: skew of the examples", skew)
    if d.regulariser:
        yield term("regulariser", "a regulariser inside the loss", d.regulariser)
    loss = aggregate(d, summed) + d.regulariser
    if d.cap is not None:
        over = max(0.0, loss - d.cap)
        yield term("cap", f"losses above {d.cap:g} are reported as {d.cap:g}", -over)
        loss -= over
    if d.unit != "nats":
        words = f"reported in {d.unit.replace('_', ' ')}"
        yield term("unit", words, (factor(d, summed, evidence.texts) - 1) * loss)


def example_term(summed: Sums) -> float:
    """−Cov(n_i, ℓ̄_i) / n̄."""
    means, n = example_means(summed, summed.nll), summed.n
    return -float(((n - n.mean()) * (means - means.mean())).mean() / n.mean())


def batch_term(summed: Sums, size: int) -> float:
    """−Cov_k(m_k, L_k) / m̄ with batches weighed by their examples, m_k the tokens per example of batch k.

    With p_k = b_k / Σ b and μ_k = m_k / b_k: the token mean is Σ p μ L / Σ p μ, the trainer's mean Σ p L.
    """
    share, per_example, of = batches(summed, size)
    means = np.bincount(of, weights=summed.nll) / (per_example * np.bincount(of))
    middle, level = (share * per_example).sum(), (share * means).sum()
    return -float((share * (per_example - middle) * (means - level)).sum() / middle)


def jensen_term(means: np.ndarray) -> tuple[float, float]:
    """log mean exp(ℓ̄ − mean ℓ̄), never negative, and its second-order value Var(ℓ̄) / 2."""
    off = means - means.mean()
    top = off.max()
    if top > 30:  # beyond, exp − 1 leaves the range of numbers; a gap of this size needs no small terms
        return float(top + np.log(np.exp(off - top).mean())), float((off**2).mean() / 2)
    # Σ off is 0 but for rounding; leaving it out keeps a small gap exact where exp − 1 would drown it.
    return float(np.log1p((np.expm1(off) - off).mean())), float((off**2).mean() / 2)


def median_term(means: np.ndarray) -> float:
    """(Σ over examples below the median of their distance to it − the same above) / N."""
    distance = means - np.median(means)
    return float((-distance[distance < 0].sum() - distance[distance > 0].sum()) / len(means))


def _between(
    first: Definition, second: Definition, before: Sums, after: Sums, evidence: LossEvidence
) -> Iterator[GapTerm]:
    """From the token mean of the first's cover under its condition to that of the second's under its own."""
    one, other = evidence.table(first), evidence.table(second)
    if one.tokenizer != other.tokenizer:
        yield from _tokenizers(before, after)
        return
    joined = _Joined.of(first, one, second, other)
    if first.table != second.table:
        words = f"condition: {_condition(second.table, other)} instead of {_condition(first.table, one)}"
        yield GapTerm(kind="condition", words=words, nats=joined.condition())
    yield from joined.coverage()


def _condition(name: str, table: LossTable) -> str:
    return table.condition or ("each example alone and whole" if name == REFERENCE else name)


def _tokenizers(before: Sums, after: Sums) -> Iterator[GapTerm]:
    """The same text in other tokens: Σ(L′ − L) / n′ is the condition, L·(n/n′ − 1) the other number of tokens."""
    if not np.array_equal(before.example, after.example):
        raise DataError(
            given="tables of two tokenizers",
            found="they do not hold the same examples",
            instead="the same rows, whole, with both tokenizers",
        )
    n, other = float(before.n.sum()), float(after.n.sum())
    yield GapTerm(
        kind="condition",
        words="condition: another model and tokenizer on the same text",
        nats=float((after.nll - before.nll).sum() / other),
    )
    yield GapTerm(
        kind="coverage",
        words=f"the text is {other:.0f} tokens instead of {n:.0f}",
        nats=float(before.nll.sum() / n * (n / other - 1)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Joined:
    """Two tables on the tokens of either: how often each definition counts a token, and its loss in each."""

    part: np.ndarray  # int8 [U]
    tokens: np.ndarray  # [U]
    counts: np.ndarray  # [2, U]
    nll: np.ndarray  # [2, U]; where a table lacks the token, the other's
    known: np.ndarray  # bool [2, U]

    @staticmethod
    def of(first: Definition, one: LossTable, second: Definition, other: LossTable) -> _Joined:
        keys = [(t.example.astype(np.int64) << 32) + t.position for t in (one, other)]
        union, index = np.unique(np.concatenate(keys), return_inverse=True)
        indices = (index[: len(one)], index[len(one) :])
        size = len(union)
        part, tokens = np.zeros(size, dtype=np.int8), np.zeros(size)
        counts, nll, known = np.zeros((2, size)), np.zeros((2, size)), np.zeros((2, size), dtype=bool)
        for side, (d, table) in enumerate(((first, one), (second, other))):
            if len(np.unique(indices[side])) != len(table):
                raise DataError(
                    given="a table of losses",
                    found="two rows for one token",
                    instead="one row per example and position",
                )
            times = dict(d.times)
            often = np.array([times.get(int(e), 1) for e in table.example]) if times else np.ones(len(table))
            here = indices[side]
            clash = known[0, here] & (tokens[here] != table.tokens) if side else np.zeros(0, dtype=bool)
            if clash.any():
                raise DataError(
                    given="two tables to join",
                    found=f"example {int(table.example[clash][0])} has another number of tokens in each",
                    instead="per-token tables",
                )
            # A loss that no definition may count is as good as none.
            known[side, here] = np.isfinite(table.nll)
            part[here], tokens[here] = table.part, table.tokens
            counts[side, here] = table.covered(d.covers) * often
            nll[side, here] = table.nll
        nll[0] = np.where(known[0], nll[0], nll[1])
        nll[1] = np.where(known[1], nll[1], nll[0])
        # What neither counts may be infinite, and 0 · ∞ is no number.
        nll[:, counts.sum(axis=0) == 0] = 0.0
        return _Joined(part=part, tokens=tokens, counts=counts, nll=nll, known=known)

    def condition(self) -> float:
        """Σ w (ℓ′ − ℓ), w = c / n: what the first counts, where both have it."""
        both = self.known.all(axis=0) & (self.counts[0] > 0)
        difference = self.nll[1, both] - self.nll[0, both]
        return float((self.counts[0, both] * difference).sum() / (self.counts[0] * self.tokens).sum())

    def coverage(self) -> Iterator[GapTerm]:
        """π_p (L_p − L) for every part p of tokens that only the second counts, and −π_p (L_p − L′) for every part
        that only the first counts; shares π of the tokens of either, L and L′ the token means under the second
        condition. Nested covers leave the textbook form π_p (L_p − L_a).
        """
        either = self.counts.max(axis=0)
        n = float((either * self.tokens).sum())
        for side, sign in ((0, 1), (1, -1)):
            mine, rest = self.counts[side], either - self.counts[side]
            level = float((mine * self.nll[1]).sum() / (mine * self.tokens).sum())
            for words, where in self._groups(rest, mine, added=side == 0):
                extra = rest[where]
                tokens = float((extra * self.tokens[where]).sum())
                mean = float((extra * self.nll[1, where]).sum()) / tokens
                yield GapTerm(kind="coverage", words=words, nats=sign * tokens / n * (mean - level))

    def _groups(self, rest: np.ndarray, mine: np.ndarray, *, added: bool) -> Iterator[tuple[str, np.ndarray]]:
        lacking = ~self.known[0] if added else ~self.known[1]
        for code, name in enumerate(PARTS):
            for repeated in (False, True):
                for absent in (False, True):
                    where = (rest > 0) & (self.part == code) & ((mine > 0) == repeated) & (lacking == absent)
                    if not where.any():
                        continue
                    what = f"{name} tokens"
                    if repeated:
                        words = f"{what} of repeated examples counted {'again' if added else 'once'}"
                    elif absent:
                        words = f"{what} that only the {'second' if added else 'first'} pass sees"
                    else:
                        words = f"{what} {'counted as well' if added else 'not counted'}"
                    yield words, where
