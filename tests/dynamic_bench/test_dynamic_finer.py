"""Rates half-way between registered ones: which runs are missing, and which count."""

from __future__ import annotations

from pathlib import Path

from benchmarks.dynamic.finer import next_finer, refined
from benchmarks.dynamic.pages.placement_page import earlier_page
from benchmarks.dynamic.queue import Job
from benchmarks.dynamic.records import Record
from tests.dynamic_bench.kept_records import CASE, FRESH, PROTOCOL, TOKENS, assembled, coarse, keep, record


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
    keep(tmp_path / "placement", coarse())
    keep(tmp_path / "placement_finer", through(losses))
    result = assembled(tmp_path)
    (case,) = result["cases"]
    assert case["auto_minus_all"]["value"] < -0.05
    assert case["finer"]["rates"] == {"all": 0.0101, "auto": 0.008}
    assert case["finer"]["minus_all"]["auto"]["value"] > 0.05
    assert "better than `all` in 0 of 1 and worse in 1" in earlier_page(result)
    # Before the last run is there nothing is said.
    lines = (tmp_path / "placement_finer" / CASE.name / "runs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "placement_finer" / CASE.name / "runs.jsonl").write_text("".join(lines[:-1]))
    unfinished = assembled(tmp_path)
    assert unfinished["cases"][0]["finer"] is None
    assert "1.26 apart" not in earlier_page(unfinished)
