"""Several signals in one set of passes, until the order of the sites has settled.

After every `FOLDS` passes, each signal is asked what it says from one half of the passes and from the other. When the
order is the same in both, as a whole and at its top (τ and weighted τ ≥ `SETTLED`), for every signal that is watched,
nothing more is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loratlas.anatomy.sites import Site
from loratlas.modeling import device_of
from loratlas.signals.base import ALL_FOLDS, FOLDS, HALVES, Signal
from loratlas.signals.column import Column
from loratlas.signals.rank_correlation import chance, tau, tau_of_top
from loratlas.signals.rematerialize import Rematerialize
from loratlas.signals.site_hooks import Loss, one_pass

if TYPE_CHECKING:
    from loratlas.data.batches.batching import Batch

SETTLED = 0.9
LEVEL = 0.05
"""An order that two halves share no better than by this chance is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one column says.

    Args:
        column: name, unit and sense.
        values: path → value, in the order of the sites; sites without one are missing.
        errors: path → standard error by the jackknife over folds; empty for what no row changes.
        repeats: Kendall's τ between the two halves of the passes; None for what no row changes.
        repeats_top: the same with the top of the order weighing most.
        silent: why there is no signal; None where there is one.
        gains: path → what rank 1, 2, … adds; None where the column has one number per site only.
    """

    column: Column
    values: Mapping[str, float]
    errors: Mapping[str, float] = field(default_factory=dict)
    repeats: float | None = None
    repeats_top: float | None = None
    silent: str | None = None
    gains: Mapping[str, Sequence[float]] | None = None

    @property
    def worth(self) -> dict[str, float]:
        """Path → value with its sign turned so that more is better."""
        return {path: self.column.worth(value) for path, value in self.values.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What the signals say.

    Args:
        readings: by column.
        loss: of the calibration rows before any adaptation, nats per counted token; NaN where no pass was made.
        passes: how many batches were read.
        rows: rows in them. tokens: all tokens. labelled: counted ones.
        backward: whether the passes went backward too.
        settled: whether the order had settled; None where nothing was watched for that.
    """

    readings: Mapping[str, Reading]
    loss: float
    passes: int
    rows: int
    tokens: int
    labelled: int
    backward: bool
    settled: bool | None


def measure(
    model: Any,
    sites: Sequence[Site],
    batches: Iterable[Batch],
    signals: Sequence[Signal],
    loss: Loss,
    *,
    watched: Sequence[str] = (),
    ranks: int = 16,
    on_weights: Callable[[int, int], object] | None = None,
    on_pass: Callable[[int], object] | None = None,
) -> Measurement:
    """Make the passes and read the signals.

    Args:
        model: a causal language model; left as it was.
        sites: to be measured, at least one.
        batches: calibration rows; no more of them are taken than needed.
        signals: what to measure.
        loss: (model, batch) → losses of the counted tokens.
        watched: columns whose order must have settled; with none, all batches are read.
        ranks: for how many ranks gains are told.
        on_weights: called with (matrices looked at, of so many), where a signal looks at weights.
        on_pass: called with the number of passes made.

    Raises:
        DataError, ModelError, SettingsError: see `loratlas.signals.site_hooks.one_pass`.
    """
    for signal in signals:
        signal.begin(model, sites)
    _weigh(model, sites, [signal for signal in signals if signal.needs == "weights"], on_weights)
    moving = [signal for signal in signals if signal.needs != "weights"]
    device = device_of(model)
    summed, passes, rows, tokens, labelled = 0.0, 0, 0, 0, 0
    settled: bool | None = None
    rematerialize = Rematerialize()
    for number, batch in enumerate(batches if moving else ()):
        for signal in moving:
            signal.fold = number % FOLDS
        summed += one_pass(model, batch.to(device), sites, moving, loss, rematerialize) * batch.labelled
        passes, rows = passes + 1, rows + len(batch.lengths)
        tokens, labelled = tokens + batch.tokens, labelled + batch.labelled
        if on_pass is not None:
            on_pass(passes)
        if watched and passes % FOLDS == 0:
            settled = _settled(moving, watched)
            if settled:
                break
    readings: dict[str, Reading] = {}
    for signal in signals:
        readings |= _readings(signal, passes, ranks)
    return Measurement(
        readings=readings,
        loss=summed / labelled if labelled else math.nan,
        passes=passes,
        rows=rows,
        tokens=tokens,
        labelled=labelled,
        backward=any(signal.needs == "backward" for signal in moving),
        settled=settled if watched and moving else None,
    )


def _weigh(
    model: Any,
    sites: Sequence[Site],
    signals: Sequence[Signal],
    on_weights: Callable[[int, int], object] | None,
) -> None:
    for done, site in enumerate(sites if signals else (), 1):
        for signal in signals:
            signal.weigh(model, site)
        if on_weights is not None:
            on_weights(done, len(sites))


def _settled(signals: Sequence[Signal], watched: Sequence[str]) -> bool:
    for signal in signals:
        columns = [column for column in signal.columns if column.name in watched]
        if not columns:
            continue
        one, two = (signal.values(half) for half in HALVES)
        for column in columns:
            a, b = (_worth(column, half[column.name]) for half in (one, two))
            if not min(tau(a, b), tau_of_top(a, b)) >= SETTLED:
                return False
    return True


def _worth(column: Column, values: Mapping[str, float]) -> dict[str, float]:
    return {path: column.worth(value) for path, value in values.items()}


def _readings(signal: Signal, passes: int, ranks: int) -> dict[str, Reading]:
    whole = signal.values()
    still = signal.needs == "weights"
    left_out = [] if still else [signal.values([f for f in ALL_FOLDS if f != out]) for out in ALL_FOLDS]
    halves = [] if still else [signal.values(half) for half in HALVES]
    order = [site.path for site in signal.sites]
    gains = signal.gains(ranks)
    readings = {}
    for column in signal.columns:
        name = column.name
        values = {path: whole[name][path] for path in order if math.isfinite(whole[name].get(path, math.nan))}
        errors, repeats, top = {}, None, None
        silent = _silent(values)
        if not still and passes >= FOLDS:
            errors = {path: _jackknife([fold[name].get(path) for fold in left_out]) for path in values}
            errors = {path: error for path, error in errors.items() if error is not None}
            one, two = (_worth(column, half[name]) for half in halves)
            repeats, top = tau(one, two), tau_of_top(one, two)
            if silent is None and chance(one, two) > LEVEL:
                silent = (
                    f"the order does not repeat from one half of the rows to the other (τ = {repeats:.2f})"
                )
        readings[name] = Reading(
            column=column,
            values=values,
            errors=errors,
            repeats=repeats,
            repeats_top=top,
            silent=silent,
            gains=gains.get(name),
        )
    return readings


def _silent(values: Mapping[str, float]) -> str | None:
    if not values:
        return "nothing could be measured"
    if all(value == 0 for value in values.values()):
        return "every value is 0"
    if len(values) > 1 and max(values.values()) == min(values.values()):
        return "every site has the same value"
    return None


def _jackknife(values: Sequence[float | None]) -> float | None:
    """Standard error from the values with one fold left out each: √((F − 1)/F · Σ (θ_f − θ̄)²)."""
    if any(value is None for value in values):
        return None
    known = [value for value in values if value is not None]
    mean = sum(known) / len(known)
    return math.sqrt((len(known) - 1) / len(known) * sum((value - mean) ** 2 for value in known))
