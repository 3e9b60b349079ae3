"""Whether arms change places when the loss is defined otherwise, or when the task itself is asked.

Two arms are *opposed* by two measures where one puts the first ahead and the other the second. That is a fact about
these runs; whether it would be found again, on new seeds and new examples, takes both signs at once:

    p = max(p_loss, p_other) / 2        two-sided p's of the paired differences, halved: each sign is one-sided

the intersection–union test: "the signs differ" is established only if each sign is. p is adjusted by Holm's method
over all pairs and measures that were compared; those whose signs agree count with p = 1.

The paired differences are those of :mod:`loratlas.study.results.estimator`, with seeds and examples crossed. For the
mean of batches the batches stand in place of the examples. A median has no such interval, so that its reversals are
told and never called established.

Source: R. L. Berger (1982), Multiparameter hypothesis testing and acceptance sampling, Technometrics 24(4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from loratlas.formats import signed
from loratlas.study.results.estimator import Estimate, estimate
from loratlas.study.results.findings import ALPHA
from loratlas.study.results.power import holm

if TYPE_CHECKING:
    from loratlas.loss_audit.definitions import Definition

LOSS = "token_mean"
"""What findings are made with; every other measure is held against it."""

Array = NDArray[np.float64]

UNITS = {
    "loss": "nats per token",
    "perplexity": "of perplexity",
    "share": "of the rows",
    "row_loss": "nats per row",
    "pair_loss": "nats per pair",
    "margin": "of the margin",
    "f1": "of macro F1",
    "rouge": "of ROUGE-L",
}
"""Unit → how a difference in it is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What an arm's evaluation runs left.

    Args:
        name: of the arm.
        summed: seed → float64 [N], summed answer losses, nats; only runs that finished and did not diverge.
        tokens: int64 [N]; answer tokens; None where no run finished.
        tasks: task metric → seed → float64 [R], the score of each row that it was taken of.
    """

    name: str
    summed: Mapping[int, Array]
    tokens: NDArray[np.int64] | None
    tasks: Mapping[str, Mapping[int, Array]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A way to rank arms.

    Args:
        name: of the definition or the task metric.
        unit: a key of `UNITS`.
        higher_is_better: of a task metric.
        definition: of a loss; None for a task metric.
        said: the name in words, where it is not its own.
    """

    name: str
    unit: str
    higher_is_better: bool = False
    definition: Definition | None = None
    said: str | None = None

    @property
    def words(self) -> str:
        """The name in words.

        >>> Measure(name="mean_example_perplexity", unit="perplexity").words
        'mean example perplexity'
        """
        return self.said or self.name.replace("_", " ")

    def scores(self, arm: Judged) -> Mapping[int, Array]:
        """Of a task metric: seed → scores."""
        return arm.tasks.get(self.name, {})

    def seeds(self, arm: Judged) -> list[int]:
        """Seeds that this measure knows of an arm."""
        return list(arm.summed if self.definition is not None else self.scores(arm))

    def value(self, arm: Judged) -> float | None:
        """Mean over seeds of the measure; None where no run finished or it left the range of numbers."""
        if self.definition is None:
            scores = [float(mean.mean()) for mean in self.scores(arm).values() if len(mean)]
        else:
            scores = [_value(self.definition, losses, arm) for losses in arm.summed.values()]
        mean = float(np.mean(scores)) if scores else math.nan
        return mean if math.isfinite(mean) else None

    def difference(self, one: Judged, two: Judged) -> Estimate | None:
        """one − two over the seeds that both have; error NaN where the measure has no interval."""
        both = [seed for seed in self.seeds(one) if seed in self.seeds(two)]
        if not both or one.tokens is None:
            return None
        with np.errstate(over="ignore", invalid="ignore"):
            if self.definition is None:
                rows = np.stack([self.scores(one)[seed] - self.scores(two)[seed] for seed in both])
                weights = np.ones(rows.shape[1])
            else:
                rows, weights = _rows(self.definition, one, two, both)
        if rows.size == 0 or not np.isfinite(rows).all():
            return None
        return estimate(rows, weights)


def measures(*, tasks: Sequence[Measure] = (), per: str = "token") -> list[Measure]:
    """All measures, the loss first.

    Args:
        tasks: task metrics.
        per: what the loss is told per. With one label a row, ``"row"``, the definitions of the loss agree: none of
            them is held against it.
    """
    from loratlas.loss_audit.catalogue import BATCH_SIZES
    from loratlas.loss_audit.definitions import Definition

    if per in ("row", "pair"):
        loss = Measure(name=LOSS, unit=f"{per}_loss", definition=Definition(name=LOSS), said="mean loss")
        return [loss, *tasks]
    losses = [
        Measure(name=LOSS, unit="loss", definition=Definition(name=LOSS)),
        Measure(
            name="example_mean",
            unit="loss",
            definition=Definition(name="example_mean", aggregate="example"),
        ),
    ]
    losses += [
        Measure(
            name=f"batch_mean_{size}",
            unit="loss",
            definition=Definition(name=f"batch_mean_{size}", aggregate="batch", batch_size=size),
        )
        for size in BATCH_SIZES
    ]
    losses += [
        Measure(
            name="mean_example_perplexity",
            unit="perplexity",
            definition=Definition(name="mean_example_perplexity", aggregate="log_mean_exp", exponential=True),
        ),
        Measure(name="median", unit="loss", definition=Definition(name="median", aggregate="median")),
    ]
    return [*losses, *tasks]


def _table(losses: Array, arm: Judged) -> Any:
    from loratlas.loss_audit.definitions import REFERENCE, LossEvidence
    from loratlas.loss_audit.token_table import LossTable

    assert arm.tokens is not None
    size = len(losses)
    table = LossTable(
        example=np.arange(size),
        position=np.zeros(size, dtype=np.int64),
        part=np.zeros(size, dtype=np.int8),
        tokens=np.asarray(arm.tokens, dtype=np.int64),
        nll=np.asarray(losses, dtype=np.float64),
    )
    return LossEvidence(tables={REFERENCE: table})


def _value(definition: Definition, losses: Array, arm: Judged) -> float:
    from loratlas.loss_audit.definitions import value

    return value(definition, _table(losses, arm))


def _rows(
    definition: Definition, one: Judged, two: Judged, both: Sequence[int]
) -> tuple[Array, NDArray[np.float64]]:
    """[S, K] and weights [K] whose `estimate` is the difference of the two arms by this definition."""
    assert one.tokens is not None
    a, b = (np.stack([arm.summed[seed] for seed in both]) for arm in (one, two))
    n = one.tokens.astype(np.float64)
    match definition.aggregate:
        case "token":
            return a - b, n
        case "example":
            return (a - b) / n, np.ones_like(n)
        case "batch":
            assert definition.batch_size is not None
            starts = np.arange(0, len(n), definition.batch_size)
            tokens = np.add.reduceat(n, starts)
            examples = np.diff(np.append(starts, len(n))).astype(np.float64)
            return np.add.reduceat(a - b, starts, axis=1) * examples / tokens, examples
        case "log_mean_exp":
            return np.exp(a / n) - np.exp(b / n), np.ones_like(n)
        case "median":  # one column: a value over seeds, and no interval over examples
            return (np.median(a / n, axis=1) - np.median(b / n, axis=1))[:, None], np.ones(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opposed:
    """Two arms under the loss and under another measure.

    Args:
        first: name of an arm. second: name of another.
        by: the other measure. against: the loss.
        loss: first − second by the token mean. other: the same by the other measure.
        p: of "the signs differ", not adjusted; 1 where they agree, NaN where a sign has no p.
    """

    first: str
    second: str
    by: Measure
    against: Measure
    loss: Estimate
    other: Estimate
    p: float

    @property
    def opposed(self) -> bool:
        """Whether the two measures put other arms ahead."""
        sign = -1.0 if self.by.higher_is_better else 1.0
        return self.loss.value * self.other.value * sign < 0


def compare(arms: Sequence[Judged], by: Sequence[Measure]) -> list[Opposed]:
    """Every pair of arms under every measure but the first, against the first."""
    pairs = []
    for one, two in combinations(arms, 2):
        loss = by[0].difference(one, two)
        for measure in by[1:]:
            other = measure.difference(one, two)
            if loss is None or other is None:
                continue
            pair = Opposed(
                first=one.name,
                second=two.name,
                by=measure,
                against=by[0],
                loss=loss,
                other=other,
                p=max(loss.p, other.p) / 2,
            )
            if math.isnan(loss.error) or math.isnan(other.error):
                pair = Opposed(**{**_fields(pair), "p": math.nan})
            elif not pair.opposed:
                pair = Opposed(**{**_fields(pair), "p": 1.0})
            pairs.append(pair)
    return pairs


def _fields(pair: Opposed) -> dict[str, Any]:
    return {name: getattr(pair, name) for name in Opposed.__dataclass_fields__}


def ranks(arms: Sequence[Judged], by: Sequence[Measure]) -> dict[str, Any]:
    """What the study's JSON says under ``ranks``.

    Returns:
        ``measures``: name, unit and direction of each; ``orders``: for each, the arms with their values, best first;
        ``compared``: how many pairs × measures were held against the loss; ``opposed``: those that disagree, each
        with both differences, p, p after Holm, whether that establishes the reversal at 5 %, and a sentence.
    """
    pairs = compare(arms, by)
    adjusted = holm([pair.p for pair in pairs])
    return {
        "measures": [
            {"name": measure.name, "unit": measure.unit, "higher_is_better": measure.higher_is_better}
            for measure in by
        ],
        "orders": [{"by": measure.name, "arms": _order(arms, measure)} for measure in by],
        "compared": len(pairs),
        "opposed": [_pair_record(pair, p) for pair, p in zip(pairs, adjusted, strict=True) if pair.opposed],
    }


def _order(arms: Sequence[Judged], measure: Measure) -> list[dict[str, Any]]:
    values = [(measure.value(arm), arm.name) for arm in arms]
    known = [(value, name) for value, name in values if value is not None]
    return [
        {"name": name, "value": value}
        for value, name in sorted(known, key=lambda item: item[0], reverse=measure.higher_is_better)
    ]


def _pair_record(pair: Opposed, p_holm: float) -> dict[str, Any]:
    established = bool(p_holm < ALPHA)
    return {
        "first": pair.first,
        "second": pair.second,
        "by": pair.by.name,
        "loss": _numbers(pair.loss),
        "other": _numbers(pair.other),
        "p": _known(pair.p),
        "p_holm": _known(p_holm),
        "established": established,
        "sentence": _sentence(pair, p_holm, established),
    }


def _sentence(pair: Opposed, p_holm: float, established: bool) -> str:
    ahead, behind = (pair.first, pair.second) if pair.loss.value < 0 else (pair.second, pair.first)
    sign = 1.0 if pair.loss.value < 0 else -1.0
    said = (
        f"The {pair.against.words} puts {ahead} before {behind} "
        f"({signed(sign * pair.loss.value)} {UNITS[pair.against.unit]}), the "
        f"{pair.by.words} puts {behind} before {ahead} ({signed(sign * pair.other.value)} {UNITS[pair.by.unit]})"
    )
    if math.isnan(p_holm):
        return f"{said}; for this measure there is no test of whether that would be found again."
    p = "p < 1e-4" if p_holm < 1e-4 else f"p = {p_holm:.4f}"
    verdict = "is established" if established else "is not established: it may be chance"
    return f"{said}; the reversal {verdict} ({p} after Holm's correction)."


def by_measure(
    arm: Judged, reference: Judged, by: Sequence[Measure], *, level: float
) -> list[dict[str, Any]]:
    """One finding by every measure: difference, interval at the finding's level, p, whether the sign agrees."""
    loss = by[0].difference(arm, reference)
    if loss is None:
        return []
    rows = []
    for measure in by:
        other = measure.difference(arm, reference)
        if other is None:
            continue
        sign = -1.0 if measure.higher_is_better else 1.0
        rows.append(
            {
                "by": measure.name,
                "unit": measure.unit,
                **_numbers(other, level=level),
                "agrees": not loss.value * other.value * sign < 0,
            }
        )
    return rows


def _numbers(estimate: Estimate, *, level: float = 0.95) -> dict[str, Any]:
    ends = estimate.interval(level)
    return {
        "difference": _known(estimate.value),
        "ci": [_known(end) for end in ends],
        "p": None if math.isnan(estimate.error) else _known(estimate.p),
    }


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
