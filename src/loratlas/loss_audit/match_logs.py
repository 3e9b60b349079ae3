"""Which definition printed the numbers of a log: every combination that tools use, tried on the same rows.

A candidate (`loratlas.loss_audit.candidates`) has reproduced a number if it comes closer than chance explains, given
how many candidates are tried (`loratlas.loss_audit.chance`), and no further than

    max(half a unit of the last printed digit, 2e-5 · |number|)        float32 sums of some thousand tokens
    at most 1e-3 · |number|                                            passes in bfloat16 or float16

Several may. First among them is what the tool is known to print, then what departs least from that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loratlas.errors import DataError
from loratlas.loss_audit.candidates import COVERS, EXACT, Candidate, CandidateMaker
from loratlas.loss_audit.catalogue import token_mean
from loratlas.loss_audit.chance import accepted_tolerances
from loratlas.loss_audit.definitions import REFERENCE, Definition, LossEvidence, example_means, sums
from loratlas.loss_audit.gaps import decompose
from loratlas.loss_audit.log_numbers import Log, Number, Setting

COMMON_SIZES = (2, 4, 8, 16, 32, 64)
"""Batch sizes that are tried where the log leaves it open; those of 1 are the example mean."""

NEAREST = 3
"""Candidates that are listed for a number that none reproduces."""

ELSEWHERE = (
    "another checkpoint than the model given",
    "other rows: another split, another order, or fewer of them",
    "batches whose loss was NaN left out",
)
"""What no log says, and no pass over these rows can show."""

NOT_A_NUMBER = (
    "a batch without a counted token, whose mean is 0/0: all its labels were masked or cut off",
    "logits beyond the range of float16",
    "weights that are not finite: training diverged before this evaluation",
)
"""What makes a tool print NaN or infinity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """A number of a log and what printed it.

    Args:
        number: the number.
        verdict: ``reproduced``; ``consistent`` (some definition agrees, but so few digits or so many definitions would
            by chance); ``not reproduced``; ``earlier`` (an evaluation before the last one, of another checkpoint);
            ``training`` (a mean over training); ``not a number``.
        matches: candidates that reproduce it, or agree with it, best first.
        nearest: candidates that come closest, where none does.
        could_be: what is left to explain it.
        tried: definitions that were tried.
    """

    number: Number
    verdict: str
    matches: tuple[Candidate, ...] = ()
    nearest: tuple[Candidate, ...] = ()
    could_be: tuple[str, ...] = ()
    tried: int = 0

    def to_json(self, evidence: LossEvidence) -> dict[str, Any]:
        """Plain data; of the best match also the terms that take the token mean there."""
        n = self.number

        def described(candidate: Candidate) -> dict[str, Any]:
            return {
                "definition": candidate.definition.name,
                "counted": candidate.counted,
                "averaged": candidate.averaged,
                "condition": _condition(candidate.definition, evidence),
                "words": candidate.words(evidence),
                "value": candidate.value,
                "off": candidate.value - n.value,
            }

        matches = [described(candidate) for candidate in self.matches]
        if matches:
            gap = decompose(token_mean(), self.matches[0].definition, evidence, below=0.0)
            matches[0]["gap"] = gap.to_json()
        return {
            "name": n.name,
            "where": n.where,
            "step": n.step,
            "epoch": n.epoch,
            "value": n.value,
            "rounding": n.rounding,
            "kind": n.kind,
            "verdict": self.verdict,
            "tried": self.tried,
            "matches": matches,
            "nearest": [described(candidate) for candidate in self.nearest],
            "could_be": list(self.could_be),
        }


def _condition(definition: Definition, evidence: LossEvidence) -> str | None:
    if definition.table == REFERENCE:
        return None
    return evidence.tables[definition.table].condition or definition.table


def explain(
    log: Log,
    evidence: LossEvidence,
    *,
    batch_sizes: Sequence[int] = (),
    smoothing: Sequence[float] = (0.1,),
    tolerance: float | None = None,
    rough: Sequence[str] = (),
    regularisers: Mapping[str, float] | None = None,
) -> list[Explained]:
    """Say of every number of a log which definition reproduces it.

    Args:
        log: what was read.
        evidence: tables of the model on the rows, and the sizes of their texts.
        batch_sizes: known ones; without any those that the log says or its rates allow, else `COMMON_SIZES`.
        smoothing: ε's that are tried where the reference table has ū.
        tolerance: largest |value − number| instead of the rule of `loratlas.loss_audit.chance`.
        rough: names of tables that were made in 16 bits.
        regularisers: what the model may have added to its loss, name → nats (`loratlas.loss_audit.regularisers`).

    Raises:
        DataError: rows without an answer token, an infinite loss (it names token and example).
    """
    # A batch of all examples is the token mean, which is tried in any case.
    examples = len(np.unique(evidence.tables[REFERENCE].example))
    sizes = tuple(batch_sizes) or log.batch_sizes or tuple(b for b in COMMON_SIZES if b < examples)
    maker = CandidateMaker(
        evidence=evidence,
        sizes=sizes,
        smoothing=tuple(smoothing),
        rough=frozenset(rough),
        regularisers=regularisers or {},
    )
    # What this model gives of these rows must be a number at all; that error is not to be lost among candidates.
    sums(token_mean(), evidence)
    evaluations = [n for n in log.numbers if not n.training]
    steps = any(n.step is not None for n in evaluations)
    order = {id(n): n.step if steps else n.epoch for n in evaluations}
    last = max((when for when in order.values() if when is not None), default=None)

    def earlier(number: Number) -> str | None:
        when = order.get(id(number))
        if last is None or when is None or when >= last:
            return None
        unit = "steps" if steps else "epochs"
        return f"the model after {when:g} {unit}; the last evaluation of this log was after {last:g}"

    return [_one(number, log, maker, earlier(number), tolerance) for number in log.numbers]


def _one(
    number: Number, log: Log, maker: CandidateMaker, earlier: str | None, tolerance: float | None
) -> Explained:
    if number.training:
        words = "a mean over steps of training, on training rows while the weights changed: no evaluation gives it"
        return Explained(number=number, verdict="training", could_be=(words,))
    if not math.isfinite(number.value):
        return Explained(number=number, verdict="not a number", could_be=NOT_A_NUMBER)
    candidates = maker.of(number.kind, log.tool)
    off = np.array([abs(c.value - number.value) for c in candidates])
    precision = np.array([max(number.rounding * 1.001, c.slack * abs(number.value)) for c in candidates])
    if tolerance is not None:
        allowed = precision = np.full(len(candidates), tolerance)
    else:
        values, levels = [c.value for c in candidates], [c.departs for c in candidates]
        allowed = accepted_tolerances(number.value, values, precision.tolist(), levels)

    def within(reach: np.ndarray) -> tuple[Candidate, ...]:
        chosen = [candidates[k] for k in np.flatnonzero(off <= reach)]
        return tuple(sorted(chosen, key=lambda c: (c.departs, abs(c.value - number.value))))

    tried = len({f"{c.value:.7g}" for c in candidates})
    if matches := within(allowed):
        return Explained(number=number, verdict="reproduced", matches=matches, tried=tried)
    # Passes that change nothing give the same value again: the plainest of them is listed.
    distinct = {f"{c.value:.7g}": c for c in sorted(candidates, key=lambda c: c.departs, reverse=True)}
    nearest = tuple(sorted(distinct.values(), key=lambda c: abs(c.value - number.value))[:NEAREST])
    if earlier is not None:
        return Explained(number=number, verdict="earlier", nearest=nearest, could_be=(earlier,), tried=tried)
    left = [_left(setting) for setting in log.missing if not maker.tried(setting)]
    could_be = (*left, *ELSEWHERE)
    if matches := within(precision):
        return Explained(number=number, verdict="consistent", matches=matches, could_be=could_be, tried=tried)
    return Explained(number=number, verdict="not reproduced", nearest=nearest, could_be=could_be, tried=tried)


def _left(setting: Setting) -> str:
    return f"{setting.name}: {setting.effect}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedExamples:
    """A list of perplexities compared with the examples' own.

    Args:
        reproduced: how many are reproduced.
        of: how many there are.
        counted: what was counted for the best fit.
        condition: under which condition, None for the reference.
        worst: index of the example that is furthest off.
        listed: what the list has there.
        computed: what was computed.
    """

    reproduced: int
    of: int
    counted: str
    condition: str | None
    worst: int
    listed: float
    computed: float


def by_example(log: Log, evidence: LossEvidence) -> ListedExamples | None:
    """Which examples of a list are reproduced, by the cover and condition that fit most of them.

    None where the log lists no examples, or another number of them than there are rows.
    """
    if log.examples is None:
        return None
    best: ListedExamples | None = None
    for table in evidence.tables:
        for counted, covers in COVERS.items():
            try:
                summed = sums(Definition(name=counted, table=table, covers=covers), evidence)
                means = example_means(summed, summed.nll)
            except DataError:
                continue
            if len(means) != len(log.examples):
                continue
            off = np.abs(np.expm1(means - np.log(log.examples)))
            good, worst = int((off <= 10 * EXACT).sum()), int(off.argmax())
            if best is None or good > best.reproduced:
                best = ListedExamples(
                    reproduced=good,
                    of=len(means),
                    counted=counted,
                    condition=_condition(Definition(name="", table=table), evidence),
                    worst=worst,
                    listed=float(log.examples[worst]),
                    computed=float(np.exp(means[worst])),
                )
    return best
