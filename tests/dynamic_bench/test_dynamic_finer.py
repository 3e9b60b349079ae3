"""Rates half-way between registered ones: which runs are missing, and which count."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from benchmarks.dynamic.finer import next_finer, refined
from benchmarks.dynamic.judging.placement import assemble
from benchmarks.dynamic.pages.placement_page import page
from benchmarks.dynamic.preregistration import Preregistered, first_fresh
from benchmarks.dynamic.queue import Job
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


def coarse() -> list[Record]:
    tuning = [record(arm, rate, 1, loss) for arm in ("all", "auto")
              for rate, loss in ((0.005, 2.2), (0.008, 2.0), (0.0128, 2.1))]  # fmt: skip
    fresh = [
        record(arm, 0.008, FRESH + k, loss, 100, 150)
        for arm, loss in (("all", 2.0), ("auto", 1.9))
        for k in (0, 1)
    ]
    return tuning + fresh


def through(losses: dict[tuple[str, float], float]) -> list[Record]:
    """What is trained when tuning at finer rates ends with these losses."""
    finer: list[Record] = []
    while (job := next_finer(PROTOCOL, coarse(), finer, TOKENS)) is not None:
        finer.append(record(job.arm, job.rate, job.seed, losses[job.arm, job.rate], *job.lengths))
    return finer


def test_both_neighbours_are_tuned_and_only_a_new_best_is_trained_again():
    assert next_finer(PROTOCOL, coarse(), [], TOKENS) == Job(arm="all", rate=0.00632, seed=1, lengths=(100,))
    losses = {("all", 0.00632): 2.1, ("all", 0.0101): 1.8, ("auto", 0.00632): 2.1, ("auto", 0.0101): 2.05}
    finer = through(losses)
    assert [(one.arm, one.rate, one.seed) for one in finer] == [
        ("all", 0.00632, 1),
        ("all", 0.0101, 1),
        ("all", 0.0101, FRESH),
        ("all", 0.0101, FRESH + 1),
        ("auto", 0.00632, 1),
        ("auto", 0.0101, 1),
    ]
    assert {(one.arm, one.rate) for one in refined(coarse(), finer)} == {("all", 0.0101), ("auto", 0.008)}


def test_the_page_tells_the_finer_comparison_beside_the_registered_one(tmp_path: Path):
    losses = {("all", 0.00632): 2.1, ("all", 0.0101): 1.8, ("auto", 0.00632): 2.1, ("auto", 0.0101): 2.05}
    for name, records in (("runs", coarse()), ("finer", through(losses))):
        folder = tmp_path / name / CASE.name
        folder.mkdir(parents=True)
        (folder / "case.json").write_text(json.dumps({"tokens": TOKENS.tolist()}))
        for one in records:
            one.write(folder)
    result = assemble(REGISTERED, tmp_path / "runs", tmp_path / "real", tmp_path / "finer")
    (case,) = result["cases"]
    assert case["auto_minus_all"]["value"] < -0.05
    assert case["finer"]["rates"] == {"all": 0.0101, "auto": 0.008}
    assert case["finer"]["minus_all"]["auto"]["value"] > 0.05
    assert "better than `all` in 0 of 1 and worse in 1" in page(result, tmp_path)
    # Before the last run is there nothing is said.
    lines = (tmp_path / "finer" / CASE.name / "runs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "finer" / CASE.name / "runs.jsonl").write_text("".join(lines[:-1]))
    unfinished = assemble(REGISTERED, tmp_path / "runs", tmp_path / "real", tmp_path / "finer")
    assert unfinished["cases"][0]["finer"] is None
    assert "1.26 apart" not in page(unfinished, tmp_path)
