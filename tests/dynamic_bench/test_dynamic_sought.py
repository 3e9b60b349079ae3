"""A search for a better plan: neighbours spend the same, what ended lower goes on, and is judged on fresh seeds."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.dynamic.cases import Case, Opened
from benchmarks.dynamic.pages.placement_page import earlier_page
from benchmarks.dynamic.queue import Job
from benchmarks.dynamic.records import Record
from benchmarks.dynamic.sought import TRIES, best_so_far, neighbour, next_sought, plans_of
from benchmarks.oracle.published import parameters
from tests.dynamic_bench.kept_records import CASE, FRESH, PROTOCOL, TOKENS, assembled, coarse, keep, record

from loratlas.placement.plan import place
from loratlas.scan.plan_from_scores import candidates


def sought(losses: dict[str, float]) -> list[Record]:
    """What is trained when tries end with these losses, and others at 3."""
    records: list[Record] = []
    while (job := next_sought(PROTOCOL, coarse(), records, TOKENS)) is not None:
        records.append(record(job.arm, job.rate, job.seed, losses.get(job.arm, 3.0), *job.lengths))
    return records


def test_the_lowest_try_is_trained_on_the_fresh_seeds_and_nothing_if_none_is_lower():
    assert next_sought(PROTOCOL, [], [], TOKENS) is None
    assert next_sought(PROTOCOL, coarse(), [], TOKENS) == Job(arm="try-1", rate=0.008, seed=1, lengths=(100,))
    none = sought({})
    assert [one.arm for one in none] == [f"try-{number}" for number in range(1, TRIES + 1)]
    some = sought({"try-2": 1.7, "try-5": 1.6, "try-7": 1.8, "sought": 1.6})
    assert [(one.arm, one.seed) for one in some[TRIES:]] == [("sought", FRESH), ("sought", FRESH + 1)]
    best = best_so_far(coarse(), some, 100, TOKENS)
    assert best is not None
    assert (best.start, best.found, best.rate) == ("all", 5, 0.008)


def test_what_trains_is_a_neighbour_of_the_best_so_far():
    opened = Opened(Case(base="demo:llama-mini", task="sorting", batch=2, held_out=4))
    known = [record(one.arm, one.rate, one.seed, 2.0) for one in coarse()]
    plan = place(opened.anatomy, "all:1").text
    known = [one if one.arm != "all" else _with(one, plan) for one in known]
    ((arm, (text,)),) = plans_of(
        Job(arm="try-2", rate=0.008, seed=1, lengths=(100,)), opened, known, []
    ).items()
    assert arm == "try-2"
    assert {row.site.layer for row in place(opened.anatomy, text).rows} == set(range(1, 8))


def _with(one: Record, placement: str) -> Record:
    return Record(
        arm=one.arm, rate=one.rate, seed=one.seed, placement=placement, trainable=1, lengths=one.lengths
    )


@pytest.mark.parametrize("number", range(1, TRIES + 1))
@pytest.mark.parametrize("budget", ["like=all:1", "like=all:2"])
def test_a_neighbour_is_another_plan_of_the_same_parameters(number: int, budget: str):
    opened = Opened(Case(base="demo:llama-mini", task="sorting", batch=2, held_out=4))
    sites = candidates(opened.anatomy)
    spent = parameters(opened.anatomy, budget)
    plan = {row.site.path: row.rank for row in place(opened.anatomy, "feedforward", budget=budget).rows}
    found = neighbour(plan, sites, spent, number)
    assert found != plan
    assert 0.95 * spent < sum(site.lora_parameters(found.get(site.path, 0)) for site in sites) <= spent
    assert found == neighbour(plan, sites, spent, number)


def test_high_ranks_are_capped_at_twice_the_reference():
    opened = Opened(Case(base="demo:llama-mini", task="sorting", batch=2, held_out=4))
    spent = parameters(opened.anatomy, "like=all:2")
    plan = {row.site.path: row.rank for row in place(opened.anatomy, "v", budget="like=all:2").rows}
    assert max(plan.values()) > 4
    assert max(neighbour(plan, candidates(opened.anatomy), spent, 1).values()) <= 4


def test_the_page_tells_what_the_search_found(tmp_path: Path):
    keep(tmp_path / "placement", coarse())
    keep(tmp_path / "placement_sought", sought({"try-5": 1.6, "sought": 1.7}))
    result = assembled(tmp_path)
    found = result["cases"][0]["sought"]
    assert found["found"] == 5
    assert [round(found[key]["value"], 1) for key in ("minus_start", "minus_all", "auto_minus")] == [
        -0.3,
        -0.3,
        0.2,
    ]
    written = " ".join(earlier_page(result).split())
    assert "lower on the tuning seed was found in 1 of 1 cases" in written
    assert "better than the plan that the search began with in 1 of these and worse in 0" in written
    assert CASE.task in written
