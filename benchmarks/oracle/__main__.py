"""Train every choice, judge every rule.

    LORATLAS_SHARED=../shared python -m benchmarks.oracle --out DIR          the size that fits a CPU
    LORATLAS_SHARED=../shared python -m benchmarks.oracle --out DIR --renew probe_yield         what a rule chooses now
    python -m benchmarks.oracle --size minute --out DIR                      to see that it works

The same command goes on where it was stopped, and judges at once what is finished. ``--tasks`` does some of the cases;
what it finds is kept case by case and judged with the cases that are there already.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import machine
from benchmarks.oracle.choices import Choice
from benchmarks.oracle.judge import against_all, record, report
from benchmarks.oracle.page import page
from benchmarks.oracle.renew import renew
from benchmarks.oracle.rules import RULES
from benchmarks.oracle.run import Case, run
from benchmarks.oracle.tasks import SIZES, TASKS, Size
from benchmarks.oracle.truth import Truth, keep_losses, kept_losses, truth

RESULTS = Path(__file__).parents[1] / "results"
COMMAND = "python -m benchmarks.oracle"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=list(SIZES), default="cpu")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), help="instead of the size's own")
    parser.add_argument("--bases", nargs="+", help="instead of the size's own")
    parser.add_argument(
        "--renew", nargs="+", choices=list(RULES), help="only these rules, in cases that are kept"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for scans, choices and ledgers")
    parser.add_argument("--workers", type=int, help="runs at a time; one per core unless given")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for oracle/ and oracle.md")
    arguments = parser.parse_args()
    size = SIZES[arguments.size]
    if arguments.tasks:
        size = replace(size, tasks=tuple(arguments.tasks))
    if arguments.bases:
        size = replace(size, bases=tuple(arguments.bases))
    kept = arguments.results / "oracle"
    for case, trained, made in _finished(size, arguments, kept):
        told = {
            **record(trained, made),
            "size": arguments.size,
            "machine": machine.machine(),
            "versions": machine.versions(),
            "revision": machine.revision(),
        }
        kept.mkdir(parents=True, exist_ok=True)
        (kept / f"{case.folder.name}.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        keep_losses(trained, kept / f"{case.folder.name}.parquet")
        _judge(arguments.results)
    print((arguments.results / "oracle.md").read_text(encoding="utf-8"))
    return 0


def _finished(
    size: Size, arguments: argparse.Namespace, kept: Path
) -> Iterator[tuple[Case, Truth, dict[str, Choice]]]:
    """Every case of the size, whole."""
    if arguments.renew:
        yield from renew(size, arguments.renew, arguments.out, kept, workers=arguments.workers)
        return
    for case, scanned, made, result in run(size, arguments.out, workers=arguments.workers):
        yield case, truth(case.name, scanned, made, result.to_json(), case.folder / "study" / "runs"), made


def _judge(results: Path) -> None:
    """All cases that are finished, wherever they were trained: `oracle.json` and `oracle.md`."""
    cases = [_case(path) for path in sorted((results / "oracle").glob("*.json"))]
    told = {"command": COMMAND, "cases": [case["case"] for case in cases], **report(cases)}
    (results / "oracle.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    (results / "oracle.md").write_text(page({**told, "cases": cases}), encoding="utf-8")


def _case(path: Path) -> dict[str, Any]:
    """A kept case, with what `--placement auto` does now against rank 1 everywhere."""
    told = json.loads(path.read_text(encoding="utf-8"))
    made = {
        name: Choice(**{key: each[key] for key in ("kind", "placement", "same_as")})
        for name, each in told["choices"].items()
    }
    told["auto_against_all"] = against_all(made, *kept_losses(path.with_suffix(".parquet")))
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return told


if __name__ == "__main__":
    sys.exit(main())
