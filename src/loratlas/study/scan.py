"""A scan: signals measured on some rows of a task."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from loratlas.anatomy.sites import Anatomy
from loratlas.errors import SettingsError
from loratlas.study.scores import DECIDES, GAINS, Scan
from loratlas.study.spending import candidates

if TYPE_CHECKING:
    from loratlas.data.batches import Batch
    from loratlas.data.encode import Encoded
    from loratlas.signals.base import Signal
    from loratlas.signals.measure import Measured, Reading

NAMES = ("gradient", "activation", "alignment", "attention", "spectrum")
"""Signals that share the passes of one scan."""

MOST_ROWS = 128
BATCH = 8
"""Rows of a pass."""

STEP = 16
"""Rows of the training step that a scan's cost is told in."""

STREAM = 5
"""Word beside the seed that draws the calibration rows."""


def scan(
    model: Any,
    anatomy: Anatomy,
    rows: Encoded,
    *,
    signals: Sequence[str] = NAMES,
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
        signals: names among `NAMES`, and ``probe`` (short trial training, see `loratlas.study.probe`).
        by: the column whose order must settle before reading ends.
        among: the sites to choose from, as a placement.
        most_rows: rows that are read at most; fewer when the order settles earlier.
        seed: draws rows and sketches.
        packed: whether batches are packed; None decides by the model's own proof.
        fisher: measure per-example second moments as well.
        on_pass: told (passes made, passes at most).

    Raises:
        SettingsError: an unknown signal, or one that decides and is not measured.
        DataError, ModelError: see `loratlas.signals.watch.one_pass`.
    """
    from loratlas.data.packing import prove_packing
    from loratlas.evaluation.losses import token_losses
    from loratlas.signals.measure import measure

    began = time.perf_counter()
    sites = candidates(anatomy, among)
    made = _made(signals, seed, fisher or by == "fisher")
    known = {column.name for signal in made for column in signal.columns}
    if "probe" in signals:
        from loratlas.study.probe import COLUMNS

        known |= {column.name for column in COLUMNS}
    if by not in known:
        raise SettingsError(
            given=f"a scan that decides by {by}",
            found="it is not measured",
            instead=f"one of {', '.join(sorted(known))}",
        )
    packed = prove_packing(model).exact if packed is None else packed
    batches = calibration(rows, most_rows=most_rows, seed=seed, packed=packed)

    def told(passes: int) -> None:
        if on_pass is not None:
            on_pass(passes, len(batches))

    watched = [by] if any(by == column.name for signal in made for column in signal.columns) else []
    found = measure(model, sites, batches, made, token_losses, watched=watched, ranks=4 * GAINS, on_pass=told)
    readings, cost = dict(found.readings), found.rows / STEP * (1.0 if found.backward else 0.5)
    if "probe" in signals:
        from loratlas.study.probe import probe

        more, steps = probe(model, sites, rows, batches, seed=seed, packed=packed)
        readings, cost = readings | more, cost + steps
    return _scan(anatomy, rows, readings, found, cost, time.perf_counter() - began)


def signal_of(column: str) -> str:
    """The signal that has this column, as `scan` takes it.

    >>> signal_of("gradient_energy"), signal_of("stable_rank")
    ('gradient', 'spectrum')
    """
    from loratlas.study.probe import COLUMNS

    owners = {column.name: "probe" for column in COLUMNS}
    for signal in _made(NAMES, 0, True):
        owners |= {column.name: signal.name for column in signal.columns}
    if column not in owners:
        raise SettingsError(
            given=f"--by {column}", found="no such score", instead=f"one of {', '.join(owners)}"
        )
    return owners[column]


def _scan(
    anatomy: Anatomy,
    rows: Encoded,
    readings: Mapping[str, Reading],
    found: Measured,
    cost: float,
    seconds: float,
) -> Scan:
    return Scan(
        model=anatomy.model,
        model_type=anatomy.model_type,
        config_digest=anatomy.config_digest,
        source=rows.source,
        digest=rows.digest,
        readings=readings,
        rows=found.rows,
        tokens=found.tokens,
        labelled=found.labelled,
        loss=found.loss if found.rows else None,
        settled=found.settled,
        cost_in_steps=cost,
        seconds=seconds,
    )


def calibration(rows: Encoded, *, most_rows: int, seed: int, packed: bool) -> list[Batch]:
    """Batches of the rows that a scan reads: drawn by the seed, in the order drawn."""
    from loratlas.data.batches import collate
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
    unknown = [name for name in names if name not in (*NAMES, "probe")]
    if unknown or not names:
        raise SettingsError(
            given=f"the signal {unknown[0]!r}" if unknown else "no signal",
            found="no such signal" if unknown else "nothing to measure",
            instead=f"among {', '.join(NAMES)}, probe",
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
    return [kinds[name]() for name in dict.fromkeys(names) if name != "probe"]
