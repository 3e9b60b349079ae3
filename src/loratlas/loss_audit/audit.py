"""The audit: all definitions of one evaluation, what lies between them, and which of them printed a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from loratlas.errors import DataError
from loratlas.evaluation.score import Scores
from loratlas.loss_audit.catalogue import catalogue, token_mean
from loratlas.loss_audit.definitions import REFERENCE, Definition, LossEvidence, value
from loratlas.loss_audit.gaps import Gap, decompose
from loratlas.loss_audit.text_units import Texts
from loratlas.loss_audit.token_table import LossTable

Source: TypeAlias = Scores | LossTable | LossEvidence
"""What an audit is made of: losses of examples, a table of tokens, or tables of several conditions."""

UNITS = ("sum", "nats_per_example", "bits", "digits")
"""Units that only rename a number: no gap is told for them."""


def evidence_of(source: Source, *, texts: Texts | None = None) -> LossEvidence:
    """Any source as evidence.

    Raises:
        DataError: scores without examples, or an example without a counted token.
    """
    if isinstance(source, LossEvidence):
        return source
    if isinstance(source, LossTable):
        return LossEvidence(tables={REFERENCE: source}, texts=texts)
    if not len(source.n):
        raise DataError(given="scores to audit", found="no examples", instead="at least one")
    empty = np.flatnonzero(np.asarray(source.n) < 1)
    if len(empty):
        raise DataError(
            given="scores to audit",
            found=f"example {int(source.example[empty[0]])} has no counted token",
            instead="examples with an answer",
        )
    return LossEvidence(tables={REFERENCE: LossTable.of_scores(source)}, texts=texts)


def definitions(source: Source, *, among: Sequence[Definition] | None = None) -> dict[str, float]:
    """Every definition by name and value (`loratlas.loss_audit.catalogue` says what each is).

    Args:
        source: what was measured.
        among: these only; without it all that the source can answer.

    Raises:
        DataError: no examples, one without a counted token, or an infinite loss.

    >>> s = Scores(example=np.array([0, 1]), n=np.array([1, 3]), nll=np.array([2.0, 3.0]))
    >>> {name: round(value, 3) for name, value in list(definitions(s).items())[:3]}
    {'token_mean': 1.25, 'perplexity': 3.49, 'example_mean': 1.5}
    """
    evidence = evidence_of(source)
    return {d.name: value(d, evidence) for d in (catalogue(evidence) if among is None else among)}


def gaps(source: Source, *, among: Sequence[Definition] | None = None) -> list[dict[str, Any]]:
    """What takes the token mean to each other definition, each term by its own formula and never by subtraction.

    Returns:
        Per term ``term`` (words), ``kind``, ``from``, ``to``, ``nats`` (add it to what stands before the arrow) and,
        for Jensen's gap, ``estimate``, its second-order value. ``nats`` between ``from`` and ``to`` add up.

    Raises:
        DataError: see `definitions`.
    """
    evidence = evidence_of(source)
    listed: list[dict[str, Any]] = []
    for first, second in _steps(catalogue(evidence) if among is None else among):
        gap = decompose(first, second, evidence, below=-1.0)
        # A gap of nothing is told by the term that would make it.
        terms = [term for term in gap.terms if term.nats] or list(gap.terms[-1:])
        for term in terms:
            entry = {"term": term.words, "kind": term.kind, "from": first.name, "to": second.name}
            listed.append(
                entry | {"nats": term.nats} | ({} if term.estimate is None else {"estimate": term.estimate})
            )
    return listed


def residual(source: Source, *, among: Sequence[Definition] | None = None) -> float:
    """Largest part of a gap that `gaps` leaves unexplained, nats; rounding only, at most 1e-6 (law 6).

    Raises:
        DataError: see `definitions`.
    """
    evidence = evidence_of(source)
    chosen = catalogue(evidence) if among is None else among
    return max((abs(decompose(a, b, evidence).residual) for a, b in _steps(chosen)), default=0.0)


def _steps(chosen: Sequence[Definition]) -> list[tuple[Definition, Definition]]:
    """From where each definition is explained: the token mean, or the example mean for what is made of it."""
    start = token_mean()
    steps = []
    for d in chosen:
        if (d.exponential and d.aggregate != "log_mean_exp") or d.unit in UNITS or d == start:
            continue
        if d.aggregate in ("log_mean_exp", "median") and d.table == REFERENCE:
            steps.append((Definition(name="example_mean", aggregate="example"), d))
        else:
            steps.append((start, d))
    return steps


@dataclass(frozen=True, slots=True, kw_only=True)
class DefinitionMatch:
    """A definition that gives a number, and what takes the token mean there.

    Args:
        definition: which.
        value: its value.
        off: value − number.
        gap: from the token mean, with every cause and its size.
    """

    definition: Definition
    value: float
    off: float
    gap: Gap


def identify(
    number: float,
    evidence: LossEvidence,
    *,
    among: Sequence[Definition] | None = None,
    tolerance: float | None = None,
) -> list[DefinitionMatch]:
    """Which definitions reproduce a number that some tool printed, the nearest first.

    Args:
        number: what it printed.
        evidence: tables to compute from.
        among: candidates; without it the whole catalogue.
        tolerance: largest |value − number|; without it 2e-5 of the number, float32 sums of a few thousand tokens.

    Returns:
        Matches; empty when no candidate gives the number.

    Raises:
        DataError: the number is infinite or none.
    """
    if not np.isfinite(number):
        raise DataError(
            given=f"the number {number}", found="nothing that a finite loss gives", instead="a finite number"
        )
    allowed = 2e-5 * max(abs(number), 1e-3) if tolerance is None else tolerance
    matches = []
    for d in catalogue(evidence) if among is None else among:
        try:
            computed = value(d, evidence)
        except DataError:  # a candidate that these rows do not allow has not printed the number
            continue
        if abs(computed - number) <= allowed:
            gap = decompose(token_mean(), d, evidence)
            matches.append(DefinitionMatch(definition=d, value=computed, off=computed - number, gap=gap))
    return sorted(matches, key=lambda match: (abs(match.off), len(match.gap.terms)))


def nearest(
    number: float, evidence: LossEvidence, *, among: Sequence[Definition] | None = None
) -> Mapping[str, float]:
    """How far each candidate is from a number, nearest first: for a number that none reproduces."""
    values = definitions(evidence, among=among)
    return dict(sorted(((k, v - number) for k, v in values.items()), key=lambda item: abs(item[1])))
