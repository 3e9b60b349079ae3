"""Placement inside the run, judged on cases that were written down beforehand.

    LORATLAS_SHARED=../shared python -m benchmarks.dynamic run --minutes 60     train what is missing, case by case
    LORATLAS_SHARED=../shared python -m benchmarks.dynamic finer --minutes 60   the same at rates 1.26 apart
    LORATLAS_SHARED=../shared python -m benchmarks.dynamic added --minutes 60   arms that were not registered
    LORATLAS_SHARED=../shared python -m benchmarks.dynamic sought --minutes 60  a better plan, by local search
    LORATLAS_SHARED=../shared python -m benchmarks.dynamic start --minutes 60   where adapters begin, registered alone
    LORATLAS_SHARED=../shared python -m benchmarks.dynamic auto --minutes 60    auto with such a start, on its own cases
    LORATLAS_SHARED=../shared python -m benchmarks.dynamic ranks --minutes 60   ranks by explained variance, so begun
    python -m benchmarks.dynamic judge                                          placement.json, placement-2.json, pages

All take their orders from ``benchmarks/results/preregistered.json``, but for ``start``, ``auto`` and ``ranks``,
which have registrations of their own, ``preregistered_start.json`` and so on. Stopped anywhere, the same
command goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.dynamic.added import ADDED, next_added
from benchmarks.dynamic.arms import Plans
from benchmarks.dynamic.cases import Opened
from benchmarks.dynamic.finer import ARMS, next_finer
from benchmarks.dynamic.judging.alone import judged_alone
from benchmarks.dynamic.judging.placement import FOLDERS, assemble, summary
from benchmarks.dynamic.pages.placement_page import earlier_page, page
from benchmarks.dynamic.preregistration import FILE, RANKS, START, THIRD, Preregistered, load
from benchmarks.dynamic.queue import Job, Protocol
from benchmarks.dynamic.records import Record, read_records
from benchmarks.dynamic.sought import next_sought, plans_of
from benchmarks.dynamic.work import work_through
from benchmarks.oracle.published import RULES
from loratlas.files import write_json, write_text
from loratlas.scan.advice import JUDGED

RESULTS = FILE.parent
PAGE = Path(__file__).parents[2] / "docs" / "results" / "placement.md"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=(*FOLDERS, "judge"))
    parser.add_argument("--cases", nargs="+", help="names such as llama-mini-sorting-all1; all unless given")
    parser.add_argument("--arms", nargs="+", help="of those that are registered; all unless given")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run later than this")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=Path("dynamic-work"), help="states of unfinished runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the folders of records")
    asked = parser.parse_args()
    registered = load()
    if asked.what in (own := {"start": START, "auto": THIRD, "ranks": RANKS}):
        run(load(own[asked.what]), asked)
        return 0
    if asked.what != "judge":
        {"run": run, "finer": finer, "added": added, "sought": sought}[asked.what](registered, asked)
        return 0
    before = assemble(registered, asked.results)
    write_json(RESULTS / "earlier" / "placement-2.json", before)
    write_text(PAGE.with_stem("placement-2"), earlier_page(before))
    result = assemble(load(THIRD), asked.results, trained="auto")
    result["start"] = judged_alone(load(START), asked.results / FOLDERS["start"], "begun")
    result["ranks"] = judged_alone(load(RANKS), asked.results / FOLDERS["ranks"], "eva")
    write_json(RESULTS / "placement.json", result)
    write_text(PAGE, page(result, RESULTS))
    write_json(JUDGED, summary(result, before))
    return 0


def run(registered: Preregistered, asked: argparse.Namespace) -> None:
    """Train what is missing: the first group of arms in all cases, then the next group."""
    until = time.monotonic() + 60 * asked.minutes
    for group in registered.content["arms"]:
        arms = [arm for arm in group if not asked.arms or arm in asked.arms]
        for case, _ in registered.cases() if arms else ():
            if asked.cases and case.name not in asked.cases:
                continue
            folder = asked.results / FOLDERS[asked.what] / case.name
            protocol = registered.protocol(case, arms)
            done = work_through(
                case,
                protocol,
                folder,
                asked.work,
                until=until,
                device=asked.device,
                rules=[arm for arm in arms if arm in RULES],
                policies=registered.content["policies"],
            )
            if not done:
                return


def finer(registered: Preregistered, asked: argparse.Namespace) -> None:
    """Train what is missing at rates half-way between the registered ones."""
    _beside(registered, asked, ARMS, next_finer)


def added(registered: Preregistered, asked: argparse.Namespace) -> None:
    """Train what is missing of the arms that were not registered."""
    _beside(registered, asked, list(ADDED), next_added)


def sought(registered: Preregistered, asked: argparse.Namespace) -> None:
    """Train what is missing of the search for a better plan."""
    _beside(registered, asked, (), next_sought, plans_of)


def _beside(
    registered: Preregistered,
    asked: argparse.Namespace,
    arms: Sequence[str],
    following: Callable[[Protocol, Sequence[Record], Sequence[Record], np.ndarray], Job | None],
    planned: Callable[[Job, Opened, Sequence[Record], Sequence[Record]], Plans] = lambda *given: {},
) -> None:
    """Train what is missing beside the registered runs, into a folder of its own."""
    until = time.monotonic() + 60 * asked.minutes
    for case, _ in registered.cases():
        if asked.cases and case.name not in asked.cases:
            continue
        known = read_records(asked.results / FOLDERS["run"] / case.name)
        done = work_through(
            case,
            registered.protocol(case, arms),
            asked.results / FOLDERS[asked.what] / case.name,
            asked.work,
            until=until,
            device=asked.device,
            rules=[arm for arm in arms if arm in RULES],
            policies=registered.content["policies"],
            missing=lambda protocol, records, tokens, known=known: following(
                protocol, known, records, tokens
            ),
            made=lambda job, opened, records, known=known: planned(job, opened, known, records),
        )
        if not done:
            return


if __name__ == "__main__":
    sys.exit(main())
