"""Calibrate the whole protocol of a study, rate choice included.

    python -m benchmarks.calibration                      # a few minutes of one core
    python -m benchmarks.calibration --studies 200        # to see that it works
    python -m benchmarks.calibration --only diverge       # worlds of that name; the others' rows are kept

Writes `benchmarks/results/calibration-protocol.json` (both editions) and `benchmarks/results/protocol.json`. A world's
seed is that of its position, so that its row is the same in a run of all and in one of it alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.calibration.protocols import ALPHA, run
from benchmarks.calibration.worlds import World, limits, worlds
from benchmarks.common import machine
from loratlas.files import write_json

RESULTS = Path(__file__).resolve().parents[1] / "results"
FILE = "calibration-protocol.json"
MOST, LEAST = 0.06, 0.75
"""Familywise false positives and power that the protocol is held to."""


def main() -> int:
    """Simulate and write; 1 where a world is beyond its limits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--studies", type=int, default=4000, help="of each world")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="a part of the names of the worlds to simulate")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    asked = parser.parse_args()
    if not any(asked.only in world.name for world in (*worlds(), *limits())):
        parser.error(f"--only {asked.only}: no world has that in its name")
    about = {
        "machine": machine.machine(),
        "versions": machine.versions(),
        "revision": machine.revision(),
        "command": " ".join(["python -m benchmarks.calibration", *sys.argv[1:]]),
    }
    begun = time.perf_counter()
    kept: dict[str, Any] = {"worlds": [], "beyond": [], "seconds": 0.0}
    if asked.only:
        kept = json.loads((asked.out / FILE).read_text(encoding="utf-8"))
        about = {name: kept[name] for name in about} | {"added": [*kept.get("added", []), about]}

    def rows(listed: list[World], before: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
        known = {row["name"]: row for row in before}
        return [
            _simulate(world, asked.studies, seed + index) if asked.only in world.name else known[world.name]
            for index, world in enumerate(listed)
        ]

    simulated = rows(worlds(), kept["worlds"], asked.seed)
    beyond = rows(limits(), kept["beyond"], asked.seed + 1000)
    fits = [row["second"]["familywise"] <= MOST and row["second"]["power"] >= LEAST for row in simulated]
    asked.out.mkdir(parents=True, exist_ok=True)
    write_json(
        asked.out / FILE,
        {
            "schema": "loratlas.calibration.protocol",
            "version": 1,
            **about,
            "limits": {"familywise": MOST, "power": LEAST},
            "passed": all(fits),
            "worlds": simulated,
            "beyond": beyond,
            "seconds": round(kept["seconds"] + time.perf_counter() - begun, 1),
        },
    )
    write_json(
        asked.out / "protocol.json",
        {"schema": "loratlas.protocol", "version": 1, **about, "worlds": [_row(one) for one in simulated]}
        | {"beyond": [_row(one) for one in beyond]},
    )
    return 0 if all(fits) else 1


def _simulate(world: World, studies: int, seed: int) -> dict[str, Any]:
    first, second = run(world, 1, studies, seed), run(world, 2, studies, seed)
    print(
        f"{world.name:75s} first {first['familywise']:6.1%}   second {second['familywise']:5.1%}"
        f"   power {second['power']:4.0%}   runs {first['runs_per_arm']:.1f} → {second['runs_per_arm']:.1f}"
        f"   open {second['undetermined_by_rate']:.1%}",
        flush=True,
    )
    return {"name": world.name, "studies": studies, "level": ALPHA, "first": first, "second": second}


def _row(simulated: dict[str, Any]) -> dict[str, Any]:
    second = simulated["second"]
    return {
        **{key: simulated[key] for key in ("name", "studies", "level")},
        "familywise": second["familywise"],
        "power": second["power"],
        "familywise_first_edition": simulated["first"]["familywise"],
    }


if __name__ == "__main__":
    sys.exit(main())
