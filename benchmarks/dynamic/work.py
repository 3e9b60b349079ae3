"""Training what is missing of a case, run by run, until the clock says so."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dynamic.arms import Plans, Policies
from benchmarks.dynamic.cases import Case, Opened
from benchmarks.dynamic.queue import Job, Protocol, next_job
from benchmarks.dynamic.records import Record, read_records
from benchmarks.dynamic.rule_plans import plans_for
from benchmarks.dynamic.train_run import train_run
from loratlas.files import write_json

CASE = "case.json"
"""What all runs of a case share."""

PLANS = "plans.json"
"""What published rules chose."""


def work_through(
    case: Case,
    protocol: Protocol,
    folder: Path,
    work: Path,
    *,
    until: float = float("inf"),
    device: str = "cpu",
    rules: Sequence[str] = (),
    policies: Policies | None = None,
    missing: Callable[[Protocol, Sequence[Record], np.ndarray], Job | None] = next_job,
    made: Callable[[Job, Opened, Sequence[Record]], Plans] = lambda job, opened, records: {},
) -> bool:
    """Train what is missing of a case.

    Args:
        case: which. protocol: how it is judged.
        folder: of its records. work: for states of unfinished runs.
        until: no run begins later (`time.monotonic`).
        device: where the base computes.
        rules: arms whose plans a published rule makes. policies: what arms of policies are.
        missing: which run comes next. made: plans of arms that are made run by run.

    Returns:
        Whether nothing is missing.
    """
    kept = held_out_of(folder)
    if kept is not None and missing(protocol, read_records(folder), kept.tokens) is None:
        return True
    opened = Opened(case, device=device)
    describe(opened, folder)
    plans = plans_for(opened, rules, folder / PLANS) if rules else {}
    while (job := missing(protocol, records := read_records(folder), opened.tokens)) is not None:
        if time.monotonic() >= until:
            return False
        begun = time.monotonic()
        said = f"{case.name} {job.arm} {job.rate:g} seed {job.seed}"

        def watch(length: int, point: dict[str, Any], said: str = said) -> None:
            print(f"{said}: {length} steps {np.sum(point['nll']) / opened.tokens.sum():.4f}", flush=True)

        record = train_run(
            opened,
            job.arm,
            job.rate,
            job.seed,
            job.lengths,
            judged=protocol.head_of or protocol.lengths[-1],
            plans={**plans, **made(job, opened, records)},
            policies=policies,
            work=work / case.name,
            watch=watch,
        )
        record.write(folder)
        print(f"{said}: {time.monotonic() - begun:.0f} s", flush=True)
    return True


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What is kept of the rows that a case is judged on.

    Args:
        tokens: counted ones of each row [N].
        clusters: numbers [N], equal for rows that belong together; None where none do.
    """

    tokens: np.ndarray
    clusters: np.ndarray | None = None


def held_out_of(folder: Path) -> HeldOut | None:
    """Of a case's records; None where it was not begun."""
    path = folder / CASE
    if not path.exists():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    clusters = kept.get("clusters")
    return HeldOut(np.array(kept["tokens"], dtype=float), None if clusters is None else np.array(clusters))


def describe(opened: Opened, folder: Path) -> None:
    """Write what all runs of a case share, or check that it is what was kept.

    Raises:
        SystemExit: rows or base are others than those that the kept runs were trained on.
    """
    from benchmarks.common.machine import versions
    from loratlas.study.inputs.clusters import clusters_of

    case = opened.case
    shared = {
        "base": case.base,
        "task": case.task,
        "budget": case.budget,
        "batch": case.rows.batch,
        "max_length": case.rows.max_length,
        "train_digest": opened.train.digest,
        "held_out_digest": opened.held_out.digest,
        "tokens": opened.tokens.tolist(),
        "clusters": clusters_of(opened.held_out),
    }
    path = folder / CASE
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        kept = {"clusters": shared["clusters"]} | kept  # cases described before clusters were kept
        other = [key for key, value in shared.items() if kept[key] != value]
        if other:
            raise SystemExit(f"{path} was made with other {', '.join(other)}; give --results another folder")
        write_json(path, kept)
        return
    base = opened.evaluate(opened.model)
    write_json(path, {**shared, "base_nll": [round(float(x), 3) for x in base], "versions": versions()})
