"""Which definition printed the numbers of a log: every combination that tools use, tried on the same rows.

A candidate is what is counted × how it is averaged × under which condition the model was run. It reproduces a number
if it is no further from it than

    max(half a unit of the last printed digit, 2e-5 · |number|)        float32 sums of some thousand tokens
    1e-3 · |number|                                                    for passes in bfloat16 or float16

Several may. First among them is what the tool is known to print, then what departs least from that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from loratlas.errors import DataError
from loratlas.loss_audit.catalogue import catalogue, token_mean
from loratlas.loss_audit.definitions import (
    REFERENCE,
    Definition,
    Evidence,
    Sums,
    aggregate,
    example_means,
    factor,
    log_value,
    sums,
)
from loratlas.loss_audit.gaps import decompose
from loratlas.loss_audit.read_logs import Kind, Log, Number, Setting
from loratlas.loss_audit.token_table import COUNTED, PARTS

EXACT, ROUGH = 2e-5, 1e-3
"""Allowed relative difference in float32, and where logits were rounded to 16 bits."""

COMMON_SIZES = (2, 4, 8, 16, 32, 64)
"""Batch sizes that are tried where the log leaves it open; those of 1 are the example mean."""

WORLD_SIZES = (2, 4, 8)
"""Numbers of processes whose sampler is tried."""

NEAREST = 3
"""Candidates that are told of a number that none reproduces."""

COVERS: dict[str, tuple[str, ...]] = {
    "answers": COUNTED,
    "prompts too": ("answer", "end", "prompt"),
    "begin tokens too": ("answer", "end", "special"),
    "all tokens": ("answer", "end", "prompt", "special"),
    "padding too": (*COUNTED, "padding"),
    "all tokens and padding": PARTS,
    "answers without their end": ("answer",),
    "prompts too, without the end": ("answer", "prompt"),
    "all tokens without the end": ("answer", "prompt", "special"),
}
"""What may be counted; the first is what loratlas counts."""

ELSEWHERE = (
    "another checkpoint than the model given",
    "other rows: another split, another order, or fewer of them",
    "batches whose loss was NaN left out",
)
"""What no log says, and no pass over these rows can show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A definition with the words that tell it apart.

    Args:
        definition: what is computed.
        counted: key of `COVERS`.
        averaged: in words.
        departs: from what loratlas, or the tool, does by default: 0 not at all.
        value: what it gives, in the log's own terms.
        rough: the pass was in 16 bits.
    """

    definition: Definition
    counted: str
    averaged: str
    departs: int
    value: float
    rough: bool

    def words(self, evidence: Evidence) -> str:
        """The candidate in one phrase."""
        parts = [self.averaged, self.counted]
        if self.definition.smoothing:
            parts.append(f"label smoothing {self.definition.smoothing:g}")
        if self.definition.table != REFERENCE:
            parts.append(evidence.tables[self.definition.table].condition or self.definition.table)
        return "; ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """A number of a log and what printed it.

    Args:
        number: the number.
        verdict: ``reproduced``, ``not reproduced``, ``earlier`` (an evaluation before the last one, of another
            checkpoint) or ``training`` (a mean over training).
        matches: candidates that reproduce it, best first.
        nearest: candidates that come closest, where none does.
        could_be: what is left to explain it.
    """

    number: Number
    verdict: str
    matches: tuple[Candidate, ...] = ()
    nearest: tuple[Candidate, ...] = ()
    could_be: tuple[str, ...] = ()

    def to_json(self, evidence: Evidence) -> dict[str, Any]:
        """Plain data; of the best match also the terms that take the token mean there."""
        n = self.number

        def told(candidate: Candidate) -> dict[str, Any]:
            return {
                "definition": candidate.definition.name,
                "counted": candidate.counted,
                "averaged": candidate.averaged,
                "condition": _condition(candidate.definition, evidence),
                "words": candidate.words(evidence),
                "value": candidate.value,
                "off": candidate.value - n.value,
            }

        matches = [told(candidate) for candidate in self.matches]
        if matches:
            gap = decompose(token_mean(), self.matches[0].definition, evidence, below=0.0)
            matches[0]["gap"] = gap.to_json()
        return {
            "name": n.name,
            "where": n.where,
            "step": n.step,
            "value": n.value,
            "rounding": n.rounding,
            "kind": n.kind,
            "verdict": self.verdict,
            "matches": matches,
            "nearest": [told(candidate) for candidate in self.nearest],
            "could_be": list(self.could_be),
        }


def _condition(definition: Definition, evidence: Evidence) -> str | None:
    if definition.table == REFERENCE:
        return None
    return evidence.tables[definition.table].condition or definition.table


def explain(
    log: Log,
    evidence: Evidence,
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
        batch_sizes: known ones; without any those that the log's rates allow, else `COMMON_SIZES`.
        smoothing: ε's that are tried where the reference table has ū.
        tolerance: largest |value − number| instead of the default.
        rough: names of tables that were made in 16 bits.
        regularisers: what the model may have added to its loss, name → nats (`loratlas.loss_audit.regularisers`).

    Raises:
        DataError: rows without an answer token, an infinite loss (it names token and example).
    """
    # A batch of all examples is the token mean, which is tried in any case.
    examples = len(np.unique(evidence.tables[REFERENCE].example))
    sizes = tuple(batch_sizes) or log.batch_sizes or tuple(b for b in COMMON_SIZES if b < examples)
    made = _Maker(
        evidence=evidence,
        sizes=sizes,
        smoothing=tuple(smoothing),
        rough=frozenset(rough),
        regularisers=regularisers or {},
    )
    # What this model gives of these rows must be a number at all; that error is not to be lost among candidates.
    sums(token_mean(), evidence)
    last = max((n.step for n in log.numbers if n.step is not None and not n.training), default=None)
    return [_one(number, log, made, last, tolerance) for number in log.numbers]


def _one(number: Number, log: Log, made: _Maker, last: int | None, tolerance: float | None) -> Explained:
    if number.training:
        words = "a mean over steps of training, on training rows while the weights changed: no evaluation gives it"
        return Explained(number=number, verdict="training", could_be=(words,))
    found = made.of(number.kind, log.tool)

    def allowed(candidate: Candidate) -> float:
        if tolerance is not None:
            return tolerance
        share = ROUGH if candidate.rough else EXACT
        return max(number.rounding * 1.001, share * abs(number.value))

    def rank(candidate: Candidate) -> tuple[int, float]:
        return candidate.departs, abs(candidate.value - number.value)

    matches = sorted((c for c in found if abs(c.value - number.value) <= allowed(c)), key=rank)
    if matches:
        return Explained(number=number, verdict="reproduced", matches=tuple(matches))
    # Passes that change nothing give the same value again: the plainest of them is told.
    distinct = {f"{c.value:.7g}": c for c in sorted(found, key=lambda c: c.departs, reverse=True)}
    closest = tuple(sorted(distinct.values(), key=lambda c: abs(c.value - number.value))[:NEAREST])
    if last is not None and number.step is not None and number.step < last:
        words = f"the model after {number.step} steps; the last evaluation of this log was after {last}"
        return Explained(number=number, verdict="earlier", nearest=closest, could_be=(words,))
    left = [_left(setting) for setting in log.missing if not made.tried(setting)]
    return Explained(number=number, verdict="not reproduced", nearest=closest, could_be=(*left, *ELSEWHERE))


def _left(setting: Setting) -> str:
    return f"{setting.name}: {setting.effect}"


@dataclass(kw_only=True)
class _Maker:
    """Makes candidates, each table summed once for each cover."""

    evidence: Evidence
    sizes: tuple[int, ...]
    smoothing: tuple[float, ...]
    rough: frozenset[str]
    regularisers: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._sums: dict[tuple[str, tuple[str, ...]], Sums | None] = {}
        self._made: dict[tuple[Kind, str], list[Candidate]] = {}

    def tried(self, setting: Setting) -> bool:
        """Whether the candidates vary what this setting decides."""
        tables = self.evidence.tables.values()
        return {
            "per_device_eval_batch_size": False,
            "which tokens are labels": any((t.part == PARTS.index("prompt")).any() for t in tables),
            "train_on_prompt": any((t.part == PARTS.index("prompt")).any() for t in tables),
            "number format of the pass": bool(self.rough),
            "number of processes": True,
        }.get(setting.name, False)

    def of(self, kind: Kind, tool: str) -> list[Candidate]:
        """All candidates for a number of this kind."""
        if (kind, tool) not in self._made:
            self._made[kind, tool] = list(self._make(kind, tool))
        return self._made[kind, tool]

    def _make(self, kind: Kind, tool: str) -> Iterator[Candidate]:
        texts = kind in ("word_perplexity", "byte_perplexity", "bits_per_byte")
        if texts and self.evidence.texts is None:
            return
        for table in self.evidence.tables:
            for counted, covers in COVERS.items():
                found = self._summed(table, counted, covers)
                if found is None:
                    continue
                for definition, averaged, departs in self._averages(table, covers, counted, kind, tool):
                    try:
                        loss = aggregate(definition, found) + definition.regulariser
                        loss *= factor(definition, found, self.evidence.texts)
                    except DataError:  # these rows do not allow this one: it has not printed the number
                        continue
                    value = _shown(loss, kind)
                    if not math.isfinite(value):
                        continue
                    yield Candidate(
                        definition=definition,
                        counted=counted,
                        averaged=averaged,
                        departs=departs + (counted != "answers") + 2 * (table != REFERENCE),
                        value=value,
                        rough=table in self.rough,
                    )
        yield from self._rare(kind)

    def _rare(self, kind: Kind) -> Iterator[Candidate]:
        """Examples that a distributed sampler repeats, and losses capped before their exponential is taken."""
        if kind not in ("loss", "perplexity"):
            return
        found = catalogue(self.evidence, batch_sizes=(), smoothing=(), world_sizes=WORLD_SIZES)
        chosen = [(d, f"{d.name.removeprefix('sampler_')} processes") for d in found if d.times]
        if kind == "perplexity":
            chosen += [(d, f"loss above {d.cap:g} told as {d.cap:g}") for d in found if d.cap is not None]
        exp = "exp of the " if kind == "perplexity" else ""
        for definition, words in chosen:
            yield Candidate(
                definition=replace(definition, exponential=kind == "perplexity"),
                counted="answers",
                averaged=f"{exp}token mean, {words}",
                departs=3,
                value=_shown(log_value(definition, self.evidence), kind),
                rough=REFERENCE in self.rough,
            )

    def _summed(self, table: str, counted: str, covers: tuple[str, ...]) -> Sums | None:
        key = (table, covers)
        if key not in self._sums:
            present = {PARTS[code] for code in np.unique(self.evidence.tables[table].part)}
            taken, added = set(COUNTED) - set(covers), set(covers) - set(COUNTED)
            if not (taken <= present and added <= present):
                self._sums[key] = None
            else:
                try:
                    # Any smoothing makes the sums hold ū.
                    uniform = self.evidence.tables[table].uniform
                    # A model that gives some token no probability at all has an infinite ū, and no smoothed loss.
                    any_smoothing = float(uniform is not None and bool(np.isfinite(uniform).all()))
                    definition = Definition(name=counted, table=table, covers=covers, smoothing=any_smoothing)
                    self._sums[key] = sums(definition, self.evidence)
                except DataError:
                    self._sums[key] = None
        return self._sums[key]

    def _averages(
        self, table: str, covers: tuple[str, ...], counted: str, kind: Kind, tool: str
    ) -> Iterator[tuple[Definition, str, int]]:
        """(definition, in words, departures from what the tool does) of each way to average."""
        shown = kind != "loss"
        base = Definition(name="", table=table, covers=covers, exponential=shown and kind != "bits_per_byte")

        def made(name: str, **more: Any) -> Definition:
            if counted != "answers":
                name = f"{name}, {counted}"
            if table != REFERENCE:
                name = f"{name}, {table}"
            return replace(base, name=name, **more)

        if kind in ("byte_perplexity", "bits_per_byte"):
            yield (
                made("bits_per_byte", unit="bits_per_byte", exponential=False),
                "all losses over all bytes",
                0,
            )
            return
        if kind == "word_perplexity":
            yield made("word_perplexity", unit="nats_per_word"), "exp of all losses over all words", 0
            return
        exp = "exp of the " if shown else ""
        end = "_perplexity" if shown else ""
        trainer = tool in ("transformers Trainer", "LLaMA-Factory", "axolotl")
        yield made("perplexity" if shown else "token_mean"), f"{exp}token mean", int(trainer)
        single = f"{exp}example mean" + (", as of batches of 1" if trainer else "")
        yield made(f"example_mean{end}", aggregate="example"), single, 1
        for size in self.sizes:
            yield (
                made(f"batch_mean_{size}{end}", aggregate="batch", batch_size=size),
                f"{exp}mean of batches of {size}",
                0 if trainer else 1,
            )
        yield made(f"median{end}", aggregate="median"), f"{exp}median of the examples", 2
        if shown:
            yield (
                made("mean_example_perplexity", aggregate="log_mean_exp"),
                "mean of the examples' perplexities",
                0 if tool == "LLaMA-Factory cal_ppl" else 1,
            )
        if kind == "perplexity" and tool == "lm-evaluation-harness":
            yield made("example_sum_perplexity", unit="nats_per_example"), "exp of the mean summed loss", 0
        for name, size in self.regularisers.items() if trainer and table == REFERENCE else ():
            for b in self.sizes:
                more = made(
                    f"batch_mean_{b}{end} + {name}", aggregate="batch", batch_size=b, regulariser=size
                )
                yield more, f"{exp}mean of batches of {b} + {name}", 1
            yield made(f"token_mean{end} + {name}", regulariser=size), f"{exp}token mean + {name}", 2
            more = made(f"example_mean{end} + {name}", aggregate="example", regulariser=size)
            yield more, f"{exp}example mean, as of batches of 1, + {name}", 2
        if self.evidence.tables[table].uniform is not None and counted in ("answers", "all tokens"):
            for epsilon in self.smoothing:
                for size in self.sizes if trainer else ():
                    yield (
                        made(
                            f"batch_mean_{size}{end}, smoothed {epsilon:g}",
                            aggregate="batch",
                            batch_size=size,
                            smoothing=epsilon,
                        ),
                        f"{exp}mean of batches of {size}",
                        2,
                    )
                yield (
                    made(f"token_mean{end}, smoothed {epsilon:g}", smoothing=epsilon),
                    f"{exp}token mean",
                    2,
                )


def _shown(loss: float, kind: Kind) -> float:
    """The number that is printed for a loss in the candidate's unit."""
    with np.errstate(over="ignore"):
        if kind in ("perplexity", "word_perplexity"):
            return float(np.exp(loss))
        return float(np.exp2(loss)) if kind == "byte_perplexity" else loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A list of perplexities against the examples' own.

    Args:
        reproduced: how many are reproduced.
        of: how many there are.
        counted: what was counted for the best fit.
        condition: under which condition, None for the reference.
        worst: place of the example that is furthest off.
        wanted: what the list has there. found: what was computed.
    """

    reproduced: int
    of: int
    counted: str
    condition: str | None
    worst: int
    wanted: float
    found: float


def by_example(log: Log, evidence: Evidence) -> Rows | None:
    """Which examples of a list are reproduced, by the cover and condition that fit most of them.

    None where the log lists no examples, or another number of them than there are rows.
    """
    if log.examples is None:
        return None
    best: Rows | None = None
    for table in evidence.tables:
        for counted, covers in COVERS.items():
            try:
                found = sums(Definition(name=counted, table=table, covers=covers), evidence)
                means = example_means(found, found.nll)
            except DataError:
                continue
            if len(means) != len(log.examples):
                continue
            off = np.abs(np.expm1(means - np.log(log.examples)))
            good, worst = int((off <= 10 * EXACT).sum()), int(off.argmax())
            if best is None or good > best.reproduced:
                best = Rows(
                    reproduced=good,
                    of=len(means),
                    counted=counted,
                    condition=_condition(Definition(name="", table=table), evidence),
                    worst=worst,
                    wanted=float(log.examples[worst]),
                    found=float(np.exp(means[worst])),
                )
    return best
