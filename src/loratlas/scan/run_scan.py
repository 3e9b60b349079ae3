"""A scan: signals measured on some rows of a task."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from loratlas.anatomy.sites import Anatomy
from loratlas.errors import SettingsError
from loratlas.scan.advice import DECIDES
from loratlas.scan.plan_from_scores import candidates
from loratlas.scan.scores import ALONE, GAINS, STEP, TRIALS, Scan

if TYPE_CHECKING:
    from loratlas.data.batching import Batch
    from loratlas.data.examples import Encoded
    from loratlas.scan.trial_training import Probed
    from loratlas.signals.base import Signal

NAMES = ("gradient", "activation", "alignment", "attention", "spectrum")
"""Signals that share the passes of one scan."""

TRAINED = ("probe", "probe_yield")
"""Signals that train; the second takes no adapter away again."""

MOST_ROWS = 128
BATCH = 8
"""Rows of a pass."""

STREAM = 5
"""Word beside the seed that draws the calibration rows."""


def scan(
    model: Any,
    anatomy: Anatomy,
    rows: Encoded,
    *,
    signals: Sequence[str] | None = None,
    by: str = DECIDES,
    among: str = "all",
    most_rows: int = MOST_ROWS,
    seed: int = 0,
    packed: bool | None = None,
    fisher: bool = False,
    on_pass: Callable[[int, int], None] | None = None,
) -> Scan:
    """Measure signals on some rows of a task.

    Args:
        model: the bare base, on its device; left as it was.
        anatomy: of it.
        rows: encoded rows of the task; some are drawn.
        signals: names among `NAMES`, and ``probe``, which trains (`loratlas.scan.trial_training`), or
        ``probe_yield`` for what
            its trials say by themselves, which costs no pass beside them. None: `NAMES`, and what has the column that
            decides.
        by: the column whose order must settle before reading ends.
        among: the sites to choose from, as a placement.
        most_rows: rows that are read at most; fewer when the order settles earlier.
        seed: draws rows and sketches.
        packed: whether batches are packed; None decides by the model's own proof.
        fisher: measure per-example second moments as well.
        on_pass: told (passes made, passes at most), steps of trials counted.

    Raises:
        SettingsError: an unknown signal, or one that decides and is not measured.
        DataError, ModelError: see `loratlas.signals.site_hooks.one_pass`.
    """
    from loratlas.data.packing import prove_packing
    from loratlas.evaluation.token_losses import token_losses
    from loratlas.scan.trial_training import SEEDS, STEPS, probe
    from loratlas.signals.measure_signals import measure

    began = time.perf_counter()
    sites = candidates(anatomy, among)
    signals = (*NAMES, signal_of(by)) if signals is None else signals
    made = _made(signals, seed, fisher or by == "fisher")
    known = {column.name for signal in made for column in signal.columns}
    removals = "probe" in signals
    if trial := any(name in TRAINED for name in signals):
        known |= set(TRIALS if removals else ALONE)
    if by not in known:
        raise SettingsError(
            given=f"a scan that decides by {by}",
            found="it is not measured",
            instead=f"one of {', '.join(sorted(known))}",
        )
    packed = prove_packing(model).exact if packed is None else packed
    batches = calibration(rows, most_rows=most_rows, seed=seed, packed=packed)

    passes = count(1)
    moving = any(signal.needs != "weights" for signal in made)
    most = moving * len(batches) + trial * SEEDS * STEPS

    def told(_: int = 0) -> None:
        made_now = next(passes)
        if on_pass is not None:
            on_pass(made_now, most)

    watched = [by] if any(by == column.name for signal in made for column in signal.columns) else []
    found = measure(model, sites, batches, made, token_losses, watched=watched, ranks=4 * GAINS, on_pass=told)
    cost = found.rows / STEP * (1.0 if found.backward else 0.5)
    scanned = Scan(
        model=anatomy.model,
        model_type=anatomy.model_type,
        config_digest=anatomy.config_digest,
        source=rows.source,
        digest=rows.digest,
        readings=found.readings,
        rows=found.rows,
        tokens=found.tokens,
        labelled=found.labelled,
        loss=found.loss if found.rows else None,
        settled=found.settled,
        cost_in_steps=cost,
        seconds=time.perf_counter() - began,
    )
    if not trial:
        return scanned
    return _with_trials(
        scanned,
        probe(model, sites, rows, batches, removals=removals, seed=seed, packed=packed, on_step=told),
        by=by,
        seconds=time.perf_counter() - began,
    )


def _with_trials(found: Scan, trials: Probed, *, by: str, seconds: float) -> Scan:
    """A scan with what trials said; where only they ran, their rows are the scan's."""
    from loratlas.signals.measure_signals import SETTLED

    alone = {} if found.rows else {name: getattr(trials, name) for name in ("rows", "tokens", "labelled")}
    deciding = trials.readings.get(by)
    if deciding is not None and deciding.repeats is not None and deciding.repeats_top is not None:
        alone["settled"] = min(deciding.repeats, deciding.repeats_top) >= SETTLED
    return replace(
        found,
        readings={**found.readings, **trials.readings},
        cost_in_steps=found.cost_in_steps + trials.cost,
        seconds=seconds,
        **alone,
    )


def signal_of(column: str) -> str:
    """The signal that has this column, as `scan` takes it.

    >>> signal_of("gradient_energy"), signal_of("probe_descent")
    ('gradient', 'probe_yield')
    """
    owners = {"probe": "probe"} | dict.fromkeys(ALONE, "probe_yield")
    for signal in _made(NAMES, 0, True):
        owners |= {column.name: signal.name for column in signal.columns}
    if column not in owners:
        raise SettingsError(
            given=f"--by {column}", found="no such score", instead=f"one of {', '.join(owners)}"
        )
    return owners[column]


def calibration(rows: Encoded, *, most_rows: int, seed: int, packed: bool) -> list[Batch]:
    """Batches of the rows that a scan reads: drawn by the seed, in the order drawn."""
    from loratlas.data.batching import collate
    from loratlas.signals.base import FOLDS

    if most_rows < FOLDS:
        raise SettingsError(
            given=f"a scan of {most_rows} rows",
            found="too few to tell whether an order repeats",
            instead=f"{FOLDS} rows or more",
        )
    stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, STREAM])))
    order = stream.permutation(len(rows))[:most_rows].tolist()
    size = max(1, min(BATCH, len(order) // FOLDS))
    return [
        collate([rows.examples[i] for i in part], packed=packed, pad_id=rows.pad_id, rows=part)
        for part in (order[start : start + size] for start in range(0, len(order), size))
    ]


def check_signals(names: Sequence[str]) -> None:
    """Refuse names that are no signals, or none at all.

    Raises:
        SettingsError: so.
    """
    unknown = [name for name in names if name not in (*NAMES, *TRAINED)]
    if unknown or not names:
        raise SettingsError(
            given=f"the signal {unknown[0]!r}" if unknown else "no signal",
            found="no such signal" if unknown else "nothing to measure",
            instead=f"among {', '.join((*NAMES, *TRAINED))}",
        )


def _made(names: Sequence[str], seed: int, fisher: bool) -> list[Signal]:
    from loratlas.signals.activation import Activation
    from loratlas.signals.alignment import Alignment
    from loratlas.signals.attention import Attention
    from loratlas.signals.gradient import Gradient
    from loratlas.signals.spectrum import Spectrum

    kinds: dict[str, Callable[[], Signal]] = {
        "gradient": lambda: Gradient(seed=seed, fisher=fisher),
        "activation": lambda: Activation(seed=seed),
        "alignment": lambda: Alignment(seed=seed),
        "attention": lambda: Attention(seed=seed),
        "spectrum": lambda: Spectrum(seed=seed),
    }
    check_signals(names)
    return [kinds[name]() for name in dict.fromkeys(names) if name not in TRAINED]
