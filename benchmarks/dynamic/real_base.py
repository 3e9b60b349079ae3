"""Does placement's advantage grow, stay or vanish as runs get longer? Real bases, run by run.

    LORATLAS_SHARED=../shared python -m benchmarks.dynamic.real_base nl2bash --minutes 90
    LORATLAS_SHARED=../shared python -m benchmarks.dynamic.real_base gsm8k alpaca --base real:gemma3-270m --device cuda

Every run is a file under ``benchmarks/results/real_base``; the same command goes on from what is there, in the middle
of a run as well.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dynamic.arms import STATIC
from benchmarks.dynamic.cases import TASKS, Case, Opened
from benchmarks.dynamic.queue import Protocol, next_job
from benchmarks.dynamic.records import read_records
from benchmarks.dynamic.train_run import train_run

RESULTS = Path(__file__).parents[1] / "results" / "real_base"
LENGTHS = (25, 50, 100, 200, 400)
TUNING = (25, 50, 100)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("tasks", nargs="+", choices=list(TASKS), help="one after the other")
    parser.add_argument("--base", default="real:smollm2-135m")
    parser.add_argument("--budget", default="like=all:2")
    parser.add_argument("--arms", nargs="+", default=list(STATIC), help="the reference first")
    parser.add_argument("--rates", nargs="+", type=float, default=[0.005, 0.008], help="tried at least")
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--seeds", type=int, default=3, help="fresh ones")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rows", type=int, default=150, help="held-out rows")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run later than this")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=Path("real-base-work"), help="states of unfinished runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    until = time.monotonic() + 60 * asked.minutes
    for task in asked.tasks:
        case = Case(
            base=asked.base, task=task, budget=asked.budget, batch=asked.batch, held_out=asked.rows
        )
        protocol = Protocol(
            arms=asked.arms,
            rates=asked.rates,
            lengths=asked.lengths,
            reference_lengths=asked.lengths,
            tuning_lengths=[length for length in asked.lengths if length <= TUNING[-1]],
            fresh_seeds=asked.seeds,
        )
        work_through(case, protocol, asked.results / case.name, asked.work, until=until, device=asked.device)
    return 0


def work_through(
    case: Case, protocol: Protocol, folder: Path, work: Path, *, until: float, device: str = "cpu"
) -> None:
    """Train what is missing of a case, until the clock says so."""
    opened = Opened(case, device=device)
    describe(opened, folder)
    while time.monotonic() < until:
        job = next_job(protocol, read_records(folder), opened.tokens)
        if job is None:
            return
        begun = time.monotonic()

        def watch(length: int, point: dict[str, Any]) -> None:
            loss = float(np.sum(point["nll"]) / opened.tokens.sum())
            print(f"{case.name} {job.arm} {job.rate:g} seed {job.seed}: {length} steps {loss:.4f}", flush=True)

        record = train_run(opened, job.arm, job.rate, job.seed, job.lengths, work=work / case.name, watch=watch)
        record.write(folder)
        print(f"{record.file} {time.monotonic() - begun:.0f} s", flush=True)


def describe(opened: Opened, folder: Path) -> None:
    """Write what all runs of a case share, or check that it is what was kept.

    Raises:
        SystemExit: rows or base are others than those that the kept runs were trained on.
    """
    from benchmarks.common.machine import versions
    from loratlas.files import write_json

    import json

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
    }
    path = folder / "case.json"
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        other = [key for key, value in shared.items() if kept[key] != value]
        if other:
            raise SystemExit(f"{path} was made with other {', '.join(other)}; give --results another folder")
        return
    base = opened.evaluate(opened.model)
    write_json(path, {**shared, "base_nll": [round(float(x), 3) for x in base], "versions": versions()})


if __name__ == "__main__":
    sys.exit(main())
