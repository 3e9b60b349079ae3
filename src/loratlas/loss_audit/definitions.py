"""Every definition of "the loss" by name: what it counts, how it averages, in which unit, and who uses it.

    value = unit · cap( aggregate( (1 − ε)·ℓ + ε·ū  over the covered tokens ) + λR ),  or its exponential

The derivations are in docs/method/metrics.md; what lies between two definitions is in `loratlas.loss_audit.gaps`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from loratlas.errors import DataError, SettingsError
from loratlas.loss_audit.token_table import COUNTED, LossTable, require_finite

if TYPE_CHECKING:
    from loratlas.loss_audit.text_units import Texts

Aggregate: TypeAlias = Literal["token", "example", "batch", "log_mean_exp", "median"]
Unit: TypeAlias = Literal[
    "nats",
    "sum",
    "nats_per_example",
    "bits",
    "digits",
    "bits_per_byte",
    "bits_per_character",
    "nats_per_word",
]

REFERENCE = "reference"
"""The table under the condition that loratlas judges with."""

LN2, LN10 = float(np.log(2)), float(np.log(10))


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """One way to make a number of token losses.

    Args:
        name: how it is called here.
        formula: in the symbols of docs/method/metrics.md.
        used_by: tools that report it.
        table: which of the evidence's tables it reads: the condition of the forward pass.
        covers: parts of the rows that are counted, of `loratlas.loss_audit.token_table.PARTS`.
        times: (example, how often it is counted) where that is not once: duplicates, examples left out.
        aggregate: token mean Σ L_i / Σ n_i; mean of example means; mean of batch means, weighed by their examples;
            log of the mean exponential of example means; median of example means.
        batch_size: examples of a batch, for ``aggregate="batch"``.
        smoothing: ε of label smoothing.
        regulariser: λR, what is added to the loss, nats.
        cap: largest loss that is let through, nats.
        unit: what the value is told in. ``digits``: logarithm to base 10; ``nats_per_example``: Σ L_i / N.
        exponential: the exponential of the value in nats is shown (of bits per byte: nothing in use).
    """

    name: str
    formula: str = ""
    used_by: str = ""
    table: str = REFERENCE
    covers: tuple[str, ...] = COUNTED
    times: tuple[tuple[int, int], ...] = ()
    aggregate: Aggregate = "token"
    batch_size: int | None = None
    smoothing: float = 0.0
    regulariser: float = 0.0
    cap: float | None = None
    unit: Unit = "nats"
    exponential: bool = False

    def __post_init__(self) -> None:
        if (self.aggregate == "batch") != (self.batch_size is not None):
            raise SettingsError(
                given=f"definition {self.name!r} with aggregate {self.aggregate!r}",
                found=f"batch_size {self.batch_size}",
                instead="a batch size for the aggregate 'batch', and for no other",
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise SettingsError(
                given=f"batch_size {self.batch_size}", found="no example in a batch", instead="1 or more"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LossEvidence:
    """What definitions are computed from.

    Args:
        tables: condition → table; `REFERENCE` is the one that others are explained from.
        texts: bytes, characters and words of each example's counted text, for units that need them.
    """

    tables: Mapping[str, LossTable] = field(default_factory=dict)
    texts: Texts | None = None

    def table(self, definition: Definition) -> LossTable:
        """The table that a definition reads.

        Raises:
            DataError: it is not there.
        """
        if definition.table not in self.tables:
            raise DataError(
                given=f"definition {definition.name!r}",
                found=f"no table {definition.table!r}; there are {', '.join(self.tables) or 'none'}",
                instead="a pass of the model under that condition",
            )
        return self.tables[definition.table]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """A table as one definition sees it, example by example, in order, each as often as it is counted.

    Args:
        example: int64 [Q].
        n: float64 [Q]; covered tokens.
        nll: float64 [Q]; their summed loss, nats.
        uniform: float64 [Q]; their summed ū, 0 where no smoothing asks for it.
    """

    example: np.ndarray
    n: np.ndarray
    nll: np.ndarray
    uniform: np.ndarray

    def smoothed(self, epsilon: float) -> np.ndarray:
        """Summed losses with label smoothing."""
        return self.nll + epsilon * (self.uniform - self.nll)


def sums(definition: Definition, evidence: LossEvidence) -> Sums:
    """Add up what a definition covers.

    Raises:
        DataError: nothing covered, an infinite loss, or smoothing without ū.
    """
    table = evidence.table(definition)
    covered = table.covered(definition.covers)
    times = dict(definition.times)
    names, index = np.unique(table.example, return_inverse=True)
    how_often = np.array([times.get(int(name), 1) for name in names], dtype=np.int64)
    covered &= how_often[index] > 0 if len(names) else covered
    require_finite(table, covered)
    if definition.smoothing and table.uniform is None:
        raise DataError(
            given=f"definition {definition.name!r} with label smoothing",
            found=f"table {definition.table!r} has no column 'uniform'",
            instead="a pass that takes it: measure(…, uniform=True)",
        )

    if definition.smoothing and table.uniform is not None and not np.isfinite(table.uniform[covered]).all():
        first = np.flatnonzero(covered & ~np.isfinite(table.uniform))[0]
        raise DataError(
            given=f"definition {definition.name!r} with label smoothing",
            found=f"token {int(table.position[first])} of example {int(table.example[first])}: the model gives some "
            "token of its vocabulary no probability at all, and smoothing asks for all of them",
            instead="a definition without label smoothing",
        )

    def added(values: np.ndarray) -> np.ndarray:
        return np.bincount(index[covered], weights=values[covered], minlength=len(names))

    n = added(table.tokens)
    if not n.sum():
        raise DataError(
            given=f"definition {definition.name!r}",
            found="no answer tokens: it covers no token at all" if len(names) else "no examples",
            instead="rows with an answer",
        )
    nll = added(table.nll)
    uniform = added(table.uniform) if definition.smoothing and table.uniform is not None else np.zeros_like(n)
    # A sampler that fills its last round begins again at the first examples: repeats stand at the end.
    once = np.flatnonzero(how_often > 0)
    repeats = [np.flatnonzero(how_often > k) for k in range(1, int(how_often.max(initial=1)))]
    order = np.concatenate([once, *repeats])
    return Sums(example=names[order], n=n[order], nll=nll[order], uniform=uniform[order])


def batches(summed: Sums, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(share of the examples p_k, tokens per example m_k / b_k, index of each example's batch) of each batch.

    Raises:
        DataError: a batch without a covered token, of which a trainer's mean is no number.
    """
    of = np.arange(len(summed.n)) // size
    b, m = np.bincount(of).astype(np.float64), np.bincount(of, weights=summed.n)
    empty = np.flatnonzero(m == 0)
    if len(empty):
        first, last = int(empty[0]) * size, min(int(empty[0] + 1) * size, len(summed.n)) - 1
        raise DataError(
            given=f"a mean of batches of {size}",
            found=f"no answer tokens in batch {int(empty[0])} (examples {int(summed.example[first])} to "
            f"{int(summed.example[last])}): its mean is no number",
            instead="rows with an answer, or a definition that leaves these examples out",
        )
    return b / b.sum(), m / b, of


def example_means(summed: Sums, nll: np.ndarray) -> np.ndarray:
    """ℓ̄_i = L_i / n_i.

    Raises:
        DataError: an example without a covered token.
    """
    empty = np.flatnonzero(summed.n < 1)
    if len(empty):
        raise DataError(
            given="a mean over examples",
            found=f"example {int(summed.example[empty[0]])} has no counted token",
            instead="examples with an answer",
        )
    return nll / summed.n


def weights(definition: Definition, summed: Sums) -> np.ndarray:
    """ω_i with value = Σ ω_i ℓ̄_i, [Q], for the linear aggregates; of the two others those of the example mean."""
    if definition.aggregate == "token":
        return summed.n / summed.n.sum()
    if definition.aggregate == "batch":
        assert definition.batch_size is not None
        share, per_example, of = batches(summed, definition.batch_size)
        b = np.bincount(of)
        return share[of] * summed.n / (per_example * b)[of]
    return np.full(len(summed.n), 1 / len(summed.n))


def aggregate(definition: Definition, summed: Sums) -> float:
    """The loss in nats before regulariser, cap and unit."""
    nll = summed.smoothed(definition.smoothing)
    if definition.aggregate == "token":
        return float(nll.sum() / summed.n.sum())
    if definition.aggregate == "batch":
        assert definition.batch_size is not None
        share, per_example, of = batches(summed, definition.batch_size)
        means = np.bincount(of, weights=nll) / (per_example * np.bincount(of))
        return float((share * means).sum())
    means = example_means(summed, nll)
    if definition.aggregate == "example":
        return float(means.mean())
    if definition.aggregate == "median":
        return float(np.median(means))
    top = means.max()
    return float(top + np.log(np.exp(means - top).mean()))


def factor(definition: Definition, summed: Sums, texts: Texts | None) -> float:
    """What turns nats per covered token into the unit.

    Raises:
        DataError: a unit of text without texts, or texts without anything in them.
    """
    n = float(summed.n.sum())
    if definition.unit == "nats_per_example":
        return n / len(summed.n)
    if definition.unit in ("nats", "sum", "bits", "digits"):
        return {"nats": 1.0, "sum": n, "bits": 1 / LN2, "digits": 1 / LN10}[definition.unit]
    if texts is None:
        raise DataError(
            given=f"definition {definition.name!r}",
            found="no texts to count bytes, characters and words of",
            instead="evidence with `loratlas.loss_audit.text_units.texts_of`",
        )
    column = {
        "bits_per_byte": texts.bytes,
        "bits_per_character": texts.characters,
        "nats_per_word": texts.words,
    }[definition.unit]
    total = float(np.asarray(column)[summed.example].sum())
    if not total:
        raise DataError(
            given=f"definition {definition.name!r}", found="answers without text", instead="rows with text"
        )
    return n / total if definition.unit == "nats_per_word" else n / (total * LN2)


def log_value(definition: Definition, evidence: LossEvidence) -> float:
    """The value before any exponential: nats, or the unit's own.

    Raises:
        DataError: see `sums`, `batches`, `example_means`, `factor`.
    """
    summed = sums(definition, evidence)
    loss = aggregate(definition, summed) + definition.regulariser
    if definition.cap is not None:
        loss = min(loss, definition.cap)
    return loss * factor(definition, summed, evidence.texts)


def value(definition: Definition, evidence: LossEvidence) -> float:
    """The number that a tool with this definition prints; a perplexity beyond the range of numbers is infinite.

    >>> table = LossTable(example=np.array([0, 1]), position=np.array([0, 0]), part=np.array([0, 0]),
    ...               tokens=np.array([1, 3]), nll=np.array([2.0, 3.0]))
    >>> value(Definition(name="m", aggregate="example"), LossEvidence(tables={"reference": table}))
    1.5
    """
    with np.errstate(over="ignore"):
        log = log_value(definition, evidence)
        return float(np.exp(log)) if definition.exponential else log
