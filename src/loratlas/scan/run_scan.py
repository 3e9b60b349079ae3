"""A scan: signals measured on some rows of a task."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loratlas.anatomy.sites import Anatomy, Site
from loratlas.errors import SettingsError
from loratlas.files import jsonable
from loratlas.interruption import Stop
from loratlas.scan.advice import DECIDES, LENGTHS, about_length
from loratlas.scan.pace import OnEvent, Pace, Phase, TooLongError, too_long
from loratlas.scan.plan_from_scores import candidates
from loratlas.scan.scan_folder import ScanFolder, stoppable
from loratlas.scan.scores import GAINS, STEP, Scan
from loratlas.signals.registry import SIGNALS, TRIAL_COLUMNS, make, signal_of

if TYPE_CHECKING:
    from loratlas.data.batches.batching import Batch
    from loratlas.data.examples import Encoded
    from loratlas.scan.trial_training import Probed
    from loratlas.signals.base import Signal

MOST_ROWS = 128
BATCH = 8
"""Rows of a pass."""

STREAM = 5
"""Word beside the seed that draws the calibration rows."""

SLACK = 0.9
"""Share of the time left that shortened trials may plan with."""

BACKWARD = 3.0
"""Work of a forward and a backward pass, in forward passes."""


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
    trial_steps: int | None = None,
    minutes: float | None = None,
    passed: float = 0.0,
    out: Path | None = None,
    resume: bool = False,
    on_event: OnEvent | None = None,
) -> Scan:
    """Measure signals on some rows of a task.

    Args:
        model: the bare base, on its device; left as it was.
        anatomy: of it.
        rows: encoded rows of the task; some are drawn.
        signals: names of `loratlas.signals.registry.SIGNALS`; None: the one that has the column that decides.
        by: the column that decides; its order must settle before reading ends.
        among: the sites to choose from, as a placement.
        most_rows: rows that are read at most; fewer when the order settles earlier.
        seed: draws rows and sketches.
        packed: whether batches are packed; None decides by the model's own proof.
        fisher: measure per-example second moments as well.
        trial_steps: of a trial, 2 or more; None for `loratlas.scan.trial_runs.STEPS`, or fewer if only these end in
            time.
        minutes: how long a scan may take. Its trials are shortened to what `loratlas.scan.advice.LENGTHS` knows the
            worth of, unless ``trial_steps`` is given; if that is not enough the scan ends as soon as that is known.
            None for no limit.
        passed: seconds of them that were used before, to read the model and the rows.
        out: folder that keeps the state until the caller says that the result is kept.
        resume: go on with the state in ``out``, if there is one.
        on_event: called after every pass, step and matrix.

    Raises:
        SettingsError: an unknown signal, one that decides and is not measured, or a scan longer than ``minutes``.
        OutputError: the state in ``out`` is another scan's, or is there and not to be resumed.
        DataError, ModelError: see `loratlas.signals.site_hooks.one_pass`.
        Interrupted: Ctrl-C or SIGTERM; the state is kept if there is a folder.

    Example:
        ``found = scan(model, anatomy, rows); plan, _ = plan_from(found, anatomy, budget="like=all:8")``
    """
    from loratlas.data.batches.packing_proof import prove_packing
    from loratlas.scan.trial_runs import SEEDS, STEPS, TrialListener
    from loratlas.scan.trial_training import probe

    began = time.perf_counter()
    sites = candidates(anatomy, among)
    signals = list(dict.fromkeys([signal_of(by)] if signals is None else signals))
    made = make(signals, seed=seed, fisher=fisher or by == "fisher")
    _check_measured(by, signals, made)
    steps = _checked_steps(STEPS if trial_steps is None else trial_steps)
    shorter = [length for length in LENGTHS if length < steps] if trial_steps is None else []
    identity = {
        "config": anatomy.config_digest,
        "rows": rows.digest,
        "signals": signals,
        "fisher": fisher,
        "by": by,
        "among": among,
        "most_rows": most_rows,
        "seed": seed,
        "trial_steps": steps,
        "weights": _weights_digest(model),
    }
    folder = ScanFolder(out, identity=identity, resume=resume) if out is not None else None
    if folder is not None and (scores := folder.scores) is not None:
        return Scan.from_json(scores)
    with stoppable(folder) as stop:
        packed = prove_packing(model).exact if packed is None else packed
        batches = calibration(rows, most_rows=most_rows, seed=seed, packed=packed)
        removals = "probe" in signals
        trains = any(SIGNALS[name].trains for name in signals)
        if folder is not None:
            steps = folder.trial_steps or steps

        def phases(steps: int) -> list[Phase]:
            return _phases(sites, batches, made, steps=steps if trains else 0, removals=removals)

        def paced(passed: float = 0.0) -> Pace:
            return Pace(phases(steps), minutes=minutes, on_event=on_event, passed=passed)

        def measured(pace: Pace) -> Scan:
            kept = folder.measured if folder is not None else None
            if kept is not None:
                return Scan.from_json(kept)
            scanned = _measured(model, anatomy, sites, rows, batches, made, by=by, pace=pace, stop=stop)
            if folder is not None:
                folder.keep_measured(scanned.to_json())
            return scanned

        if not trains:
            scanned = measured(paced(passed))
            return _finished(replace(scanned, seconds=time.perf_counter() - began), folder)
        scanned, pace = None, paced(passed)
        while True:
            try:
                scanned = scanned or measured(pace)
                trials = probe(
                    model,
                    sites,
                    rows,
                    batches,
                    removals=removals,
                    seed=seed,
                    packed=packed,
                    steps=steps,
                    folders=folder.trials(SEEDS) if folder is not None else None,
                    watch=TrialListener(
                        step=partial(pace.done, "trials"),
                        removal=partial(_counted, pace, "removals", stop),
                        resumed=partial(pace.start_at, "trials"),
                    ),
                )
                break
            except TooLongError as error:
                if pace.resumed or minutes is None:
                    raise
                steps = _shortened(
                    error,
                    {n: phases(n) for n in shorter if n < steps},
                    minutes,
                    passes=scanned is None,
                )
                if folder is not None:
                    folder.shorten(steps)
                pace = paced(error.passed)
                pace.say("trials", about_length(steps, by) or "")
        read = set([row for batch in batches for row in batch.rows][: scanned.visits])
        return _finished(
            _with_trials(scanned, trials, read, steps=steps, seconds=time.perf_counter() - began), folder
        )


def _counted(pace: Pace, phase: str, stop: Stop) -> None:
    """One more unit is done; end here if somebody asked for it."""
    pace.done(phase)
    stop.check()


def _finished(scanned: Scan, folder: ScanFolder | None) -> Scan:
    """What a scan returns: what its file holds, so that a plan from either is the same."""
    data = jsonable(scanned.to_json())
    if folder is not None:
        folder.finish(data)
    return Scan.from_json(data)


def _check_measured(by: str, signals: Sequence[str], made: Sequence[Signal]) -> None:
    known = {column.name for signal in made for column in signal.columns}
    if any(SIGNALS[name].trains for name in signals):
        known |= {name for name in TRIAL_COLUMNS if name != "probe" or "probe" in signals}
    if by not in known:
        raise SettingsError(
            given=f"a scan that decides by {by}",
            found="it is not measured",
            instead=f"one of {', '.join(sorted(known))}",
        )


def _checked_steps(steps: int) -> int:
    if steps < 2:
        raise SettingsError(
            given=f"trials of {steps} steps", found="too few to see the loss fall", instead="2 steps or more"
        )
    return steps


def _shortened(
    error: TooLongError, phases: Mapping[int, Sequence[Phase]], minutes: float, *, passes: bool
) -> int:
    """Steps of the longest trials with which a scan ends in time.

    Args:
        error: what the first steps said.
        phases: by the steps of a trial.
        minutes: that the scan may take.
        passes: whether those of the signals are still to come.

    Raises:
        TooLongError: not even the shortest do.
    """
    seconds = {}
    for steps, planned in phases.items():
        judged = [
            phase for phase in planned if phase.kind == error.kind and (passes or phase.name != "passes")
        ]
        if any(phase.name == "trials" for phase in judged):
            seconds[steps] = error.seconds_per_work * sum(sum(phase.work) for phase in judged)
    if not seconds:
        raise error
    # A share is kept for what follows, and for a machine that slows down.
    fitting = [steps for steps, each in seconds.items() if each <= SLACK * (60 * minutes - error.passed)]
    if fitting:
        return max(fitting)
    least = min(seconds)
    raise too_long(minutes, error.passed + seconds[least], f" even with trials of {least} steps") from None


def _weights_digest(model: Any) -> int:
    """CRC-32 over a slice of every weight: another base, not another bit, is to be noticed."""
    import zlib

    import torch

    total = 0
    for parameter in model.parameters():
        flat = parameter.detach().flatten()[:256].contiguous().view(torch.uint8)
        total = zlib.crc32(flat.cpu().numpy(), total)
    return total


def _phases(
    sites: Sequence[Site], batches: Sequence[Batch], made: Sequence[Signal], *, steps: int, removals: bool
) -> list[Phase]:
    """What will be done, in order; work in rows forward, of weights in operations."""
    from loratlas.scan.trial_runs import BATCH as ROWS
    from loratlas.scan.trial_runs import SEEDS

    phases = []
    if any(signal.needs == "weights" for signal in made):
        work = [float(max(s.shape)) * min(s.shape) ** 2 * (s.experts or 1) for s in sites]
        phases.append(Phase(name="weights", unit="matrices", work=work, kind="weights"))
    if any(signal.needs != "weights" for signal in made):
        each = BACKWARD if any(signal.needs == "backward" for signal in made) else 1.0
        phases.append(Phase(name="passes", unit="passes", work=[each * len(b.lengths) for b in batches]))
    if steps:
        work = [BACKWARD * ROWS] * (SEEDS * steps)
        phases.append(Phase(name="trials", unit="steps", work=work))
        if removals:
            work = [float(sum(len(batch.lengths) for batch in batches))] * (SEEDS * len(sites))
            phases.append(Phase(name="removals", unit="adapters", work=work))
    return phases


def _measured(
    model: Any,
    anatomy: Anatomy,
    sites: Sequence[Site],
    rows: Encoded,
    batches: Sequence[Batch],
    made: Sequence[Signal],
    *,
    by: str,
    pace: Pace,
    stop: Stop,
) -> Scan:
    """What the signals say that do not train."""
    from loratlas.evaluation.token_losses import token_losses
    from loratlas.signals.measure_signals import measure

    watched = [by] if any(by == column.name for signal in made for column in signal.columns) else []
    measured = measure(
        model,
        sites,
        batches,
        made,
        token_losses,
        watched=watched,
        ranks=4 * GAINS,
        on_weights=lambda *_: _counted(pace, "weights", stop),
        on_pass=lambda _: _counted(pace, "passes", stop),
    )
    return Scan(
        model=anatomy.model,
        model_type=anatomy.model_type,
        config_digest=anatomy.config_digest,
        source=rows.source,
        digest=rows.digest,
        by=by,
        readings=measured.readings,
        rows=measured.rows,
        visits=measured.rows,
        tokens=measured.tokens,
        labelled=measured.labelled,
        loss=measured.loss if measured.rows else None,
        settled=measured.settled,
        cost_in_steps=measured.rows / STEP * (1.0 if measured.backward else 0.5),
        seconds=0.0,
    )


def _with_trials(scanned: Scan, trials: Probed, passed: set[int], *, steps: int, seconds: float) -> Scan:
    """A scan with what trials said."""
    from loratlas.signals.measure_signals import SETTLED

    settled: Mapping[str, bool] = {}
    deciding = trials.readings.get(scanned.by)
    if deciding is not None and deciding.repeats is not None and deciding.repeats_top is not None:
        settled = {"settled": min(deciding.repeats, deciding.repeats_top) >= SETTLED}
    return replace(
        scanned,
        readings={**scanned.readings, **trials.readings},
        rows=len(trials.rows | passed),
        visits=scanned.visits + trials.visits,
        tokens=scanned.tokens + trials.tokens,
        labelled=scanned.labelled + trials.labelled,
        cost_in_steps=scanned.cost_in_steps + trials.cost,
        trial_steps=steps,
        seconds=seconds,
        **settled,
    )


def calibration(rows: Encoded, *, most_rows: int, seed: int, packed: bool) -> list[Batch]:
    """Batches of the rows that a scan reads: drawn by the seed, in the order drawn."""
    from loratlas.data.batches.batching import collate
    from loratlas.signals.base import FOLDS

    if most_rows < FOLDS:
        raise SettingsError(
            given=f"a scan of {most_rows} rows",
            found="too few to say whether an order repeats",
            instead=f"{FOLDS} rows or more",
        )
    stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, STREAM])))
    order = stream.permutation(len(rows))[:most_rows].tolist()
    size = max(1, min(BATCH, len(order) // FOLDS))
    return [
        collate([rows.examples[i] for i in part], packed=packed, pad_id=rows.pad_id, rows=part)
        for part in (order[start : start + size] for start in range(0, len(order), size))
    ]
