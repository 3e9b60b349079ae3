"""A small registration and records of its runs, as if they had been trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.dynamic.judging.placement import assemble
from benchmarks.dynamic.preregistration import Preregistered, first_fresh
from benchmarks.dynamic.records import Record

TOKENS = np.array([2.0, 4.0, 6.0, 3.0])
NOISE = np.random.default_rng(0)

CONTENT = {
    "cases": [
        {"base": "demo:llama-mini", "task": "sorting", "budget": "like=all:1", "steps": 100, "batch": 8,
         "held_out": 4, "unseen": True}
    ],
    "arms": [["all", "auto"]],
    "policies": {},
    "rates": [0.008],
    "tuning_seeds": 1,
    "fresh_seeds": 2,
    "longer": [1.5],
}  # fmt: skip
REGISTERED = Preregistered(digest="d" * 64, commit="c" * 40, content=CONTENT)
((CASE, _),) = REGISTERED.cases()
PROTOCOL = REGISTERED.protocol(CASE, ["all", "auto"])
FRESH = first_fresh(CASE)


def record(arm: str, rate: float, seed: int, loss: float, *lengths: int) -> Record:
    nll = TOKENS * loss + 0.001 * NOISE.normal(size=4)
    return Record(arm=arm, rate=rate, seed=seed, placement=f"{arm}:1", trainable=10,
                  lengths={length: nll - 0.1 * TOKENS * (length > 100) for length in lengths or (100,)})  # fmt: skip


def keep(folder: Path, records: list[Record]) -> None:
    folder = folder / CASE.name
    folder.mkdir(parents=True)
    (folder / "case.json").write_text(json.dumps({"tokens": TOKENS.tolist()}))
    for one in records:
        one.write(folder)


def assembled(folder: Path) -> dict[str, Any]:
    return assemble(REGISTERED, folder)


def coarse() -> list[Record]:
    tuning = [record(arm, rate, 1, loss) for arm in ("all", "auto")
              for rate, loss in ((0.005, 2.2), (0.008, 2.0), (0.0128, 2.1))]  # fmt: skip
    fresh = [
        record(arm, 0.008, FRESH + k, loss, 100, 150)
        for arm, loss in (("all", 2.0), ("auto", 1.9))
        for k in (0, 1)
    ]
    return tuning + fresh
