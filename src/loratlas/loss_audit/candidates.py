"""Candidates for the number of a log: what is counted × how it is averaged × under which condition the model ran."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from loratlas.errors import DataError
from loratlas.loss_audit.catalogue import catalogue
from loratlas.loss_audit.definitions import (
    REFERENCE,
    Definition,
    LossEvidence,
    Sums,
    aggregate,
    factor,
    log_value,
    sums,
)
from loratlas.loss_audit.log_numbers import Kind, Setting
from loratlas.loss_audit.token_table import COUNTED, PARTS

WORLD_SIZES = (2, 4, 8)
"""Numbers of processes whose sampler is tried."""

EXACT, ROUGH = 2e-5, 1e-3
"""Allowed relative difference in float32, and at most where logits were rounded to 16 bits."""

TRAINERS = ("transformers Trainer", "LLaMA-Factory", "axolotl")
"""Tools whose evaluation is a mean of batch means."""

COVERS: dict[str, tuple[str, ...]] = {
    "answers": COUNTED,
    "answers and what follows their end": (*COUNTED, "tail"),
    "prompts too": (*COUNTED, "prompt", "tail"),
    "begin tokens too": (*COUNTED, "special"),
    "all tokens": (*COUNTED, "prompt", "special", "tail"),
    "padding too": (*COUNTED, "padding"),
    "all tokens and padding": PARTS,
    "answers without their end": ("answer",),
    "prompts too, without the end": ("answer", "prompt", "tail"),
    "all tokens without the end": ("answer", "prompt", "special", "tail"),
}
"""What may be counted; the first is what loratlas counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A definition with the words that describe it.

    Args:
        definition: what is computed.
        counted: key of `COVERS`.
        averaged: in words.
        departs: from what loratlas, or the tool, does by default: 0 not at all.
        value: what it gives, in the log's own terms.
        slack: relative difference that rounding explains.
    """

    definition: Definition
    counted: str
    averaged: str
    departs: float
    value: float
    slack: float = EXACT

    def words(self, evidence: LossEvidence) -> str:
        """The candidate in one phrase."""
        parts = [self.averaged, self.counted]
        if self.definition.smoothing:
            parts.append(f"label smoothing {self.definition.smoothing:g}")
        if self.definition.table != REFERENCE:
            parts.append(evidence.tables[self.definition.table].condition or self.definition.table)
        return "; ".join(parts)


@dataclass(kw_only=True)
class CandidateMaker:
    """Makes candidates, each table summed once for each cover."""

    evidence: LossEvidence
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
            self._made[kind, tool] = self._with_slack(list(self._make(kind, tool)))
        return self._made[kind, tool]

    def _with_slack(self, made: list[Candidate]) -> list[Candidate]:
        """Passes in 16 bits differ from one another by no more than they differ from float32."""
        exact = {_without_table(c): c.value for c in made if c.definition.table not in self.rough}

        def slack(candidate: Candidate) -> float:
            if candidate.definition.table not in self.rough:
                return EXACT
            reference = exact.get(_without_table(candidate))
            if not reference:
                return ROUGH
            return min(max(abs(candidate.value / reference - 1), EXACT), ROUGH)

        return [replace(candidate, slack=slack(candidate)) for candidate in made]

    def _make(self, kind: Kind, tool: str) -> Iterator[Candidate]:
        texts = kind in ("word_perplexity", "byte_perplexity", "bits_per_byte")
        if texts and self.evidence.texts is None:
            return
        for table in self.evidence.tables:
            for counted, covers in COVERS.items():
                summed = self._summed(table, counted, covers)
                if summed is None:
                    continue
                for definition, averaged, departs in self._averages(table, covers, counted, kind, tool):
                    try:
                        loss = aggregate(definition, summed) + definition.regulariser
                        loss *= factor(definition, summed, self.evidence.texts)
                    except DataError:  # these rows do not allow this one: it has not printed the number
                        continue
                    value = _shown(loss, kind)
                    if not math.isfinite(value):
                        continue
                    yield Candidate(
                        definition=definition,
                        counted=counted,
                        averaged=averaged,
                        departs=departs + (counted != "answers") + self._condition_departs(table),
                        value=value,
                    )
        yield from self._rare(kind)

    def _condition_departs(self, table: str) -> float:
        """Many tools evaluate in 16 bits; the other conditions are mishaps."""
        if table == REFERENCE:
            return 0
        return 0.5 if table in self.rough else 2

    def _rare(self, kind: Kind) -> Iterator[Candidate]:
        """Examples that a distributed sampler repeats, and losses capped before their exponential is taken."""
        if kind not in ("loss", "perplexity"):
            return
        every = catalogue(self.evidence, batch_sizes=(), smoothing=(), world_sizes=WORLD_SIZES)
        chosen = [(d, f"{d.name.removeprefix('sampler_')} processes") for d in every if d.times]
        if kind == "perplexity":
            chosen += [(d, f"loss above {d.cap:g} printed as {d.cap:g}") for d in every if d.cap is not None]
        exp = "exp of the " if kind == "perplexity" else ""
        for definition, words in chosen:
            yield Candidate(
                definition=replace(definition, exponential=kind == "perplexity"),
                counted="answers",
                averaged=f"{exp}token mean, {words}",
                departs=3,
                value=_shown(log_value(definition, self.evidence), kind),
            )

    def _summed(self, table: str, counted: str, covers: tuple[str, ...]) -> Sums | None:
        key = (table, covers)
        if key not in self._sums:
            present = {PARTS[code] for code in np.unique(self.evidence.tables[table].part)}
            taken, added = set(COUNTED) - set(covers), set(covers) - set(COUNTED)
            if "prompt" in covers:
                added -= {"tail"}  # a template need not write one
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
        trainer = tool in TRAINERS
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


def _without_table(candidate: Candidate) -> Definition:
    return replace(candidate.definition, name="", table=REFERENCE)


def _shown(loss: float, kind: Kind) -> float:
    """The number that is printed for a loss in the candidate's unit."""
    with np.errstate(over="ignore"):
        if kind in ("perplexity", "word_perplexity"):
            return float(np.exp(loss))
        return float(np.exp2(loss)) if kind == "byte_perplexity" else loss
