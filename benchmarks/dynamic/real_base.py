"""Does placement's advantage grow, stay or vanish as runs get longer? Real bases, run by run.

    LORATLAS_SHARED=../shared python -m benchmarks.dynamic.real_base nl2bash --minutes 90
    LORATLAS_SHARED=../shared python -m benchmarks.dynamic.real_base gsm8k alpaca --base real:gemma3-270m --device cuda

Every run is a file under ``benchmarks/results/real_base``; the same command goes on from what is there, in the middle
of a run as well.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.dynamic.arms import STATIC
from benchmarks.dynamic.cases import TASKS, Case
from benchmarks.dynamic.judging.placement import MOVES
from benchmarks.dynamic.preregistration import FILE, THIRD
from benchmarks.dynamic.queue import Protocol
from benchmarks.dynamic.work import work_through

RESULTS = Path(__file__).parents[1] / "results" / "real_base"
LENGTHS = (25, 50, 100, 200, 400)
TUNING = (25, 50, 100)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("tasks", nargs="+", choices=list(TASKS), help="one after the other")
    parser.add_argument("--base", default="real:smollm2-135m")
    parser.add_argument("--budget", default="like=all:2")
    parser.add_argument(
        "--arms",
        nargs="+",
        default=list(STATIC),
        help="the reference first; policies are those registered last, and `moves`",
    )
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
    policies = json.loads(THIRD.read_text(encoding="utf-8"))["policies"]
    policies[MOVES] = json.loads(FILE.read_text(encoding="utf-8"))["policies"]["auto"]
    for task in asked.tasks:
        case = Case(base=asked.base, task=task, budget=asked.budget, batch=asked.batch, held_out=asked.rows)
        protocol = Protocol(
            arms=asked.arms,
            rates=asked.rates,
            lengths=asked.lengths,
            reference_lengths=asked.lengths,
            tuning_lengths=[length for length in asked.lengths if length <= TUNING[-1]],
            fresh_seeds=asked.seeds,
        )
        work_through(
            case,
            protocol,
            asked.results / case.name,
            asked.work,
            until=until,
            device=asked.device,
            policies=policies,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
