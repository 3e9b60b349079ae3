"""Arms that were not registered: tuned around the reference's rate, judged on its seeds, part of no other figure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.dynamic.added import next_added
from benchmarks.dynamic.judging.alone import judged_alone
from benchmarks.dynamic.pages.placement_page import earlier_page, page
from benchmarks.dynamic.queue import Job
from benchmarks.dynamic.records import Record
from tests.dynamic_bench.kept_records import (
    CASE,
    FRESH,
    REGISTERED,
    TOKENS,
    assembled,
    coarse,
    keep,
    record,
)

PROTOCOL = REGISTERED.protocol(CASE, ["gora_start"])


def with_gora() -> list[Record]:
    return [*coarse(), *(record("gora", 0.008, FRESH + k, 1.8) for k in (0, 1))]


def added() -> list[Record]:
    records: list[Record] = []
    while (job := next_added(PROTOCOL, with_gora(), records, TOKENS)) is not None:
        records.append(record(job.arm, job.rate, job.seed, 1.7 + abs(job.rate - 0.008), *job.lengths))
    return records


def test_it_is_tuned_around_the_reference_and_trained_on_the_fresh_seeds():
    assert next_added(PROTOCOL, [], [], TOKENS) is None
    assert next_added(PROTOCOL, coarse(), [], TOKENS) == Job(
        arm="gora_start", rate=0.008, seed=1, lengths=(100,)
    )
    assert {(one.arm, one.rate, one.seed) for one in added()} == {
        ("gora_start", 0.008, 1),
        ("gora_start", 0.005, 1),
        ("gora_start", 0.0128, 1),
        ("gora_start", 0.008, FRESH),
        ("gora_start", 0.008, FRESH + 1),
    }


def test_the_page_tells_of_it_and_no_other_figure_changes(tmp_path: Path):
    keep(tmp_path / "placement", with_gora())
    before = assembled(tmp_path)
    assert before["cases"][0]["added"] is None
    assert "Added later" not in earlier_page(before)
    keep(tmp_path / "placement_added", added())
    after = assembled(tmp_path)
    found = after["cases"][0]["added"]["gora_start"]
    assert found["rate"] == 0.008
    assert [round(found[key]["value"], 1) for key in ("minus_same_ranks", "minus_all", "auto_minus")] == [
        -0.1,
        -0.3,
        0.2,
    ]
    written = earlier_page(after)
    assert "better in 1 of 1 cases and worse in 0; `auto` is better than it in 0 and worse in 1" in " ".join(
        written.split()
    )
    after["cases"][0]["added"] = None
    assert after == before


def test_where_adapters_begin_is_judged_by_itself(tmp_path: Path):
    assert judged_alone(REGISTERED, tmp_path, "begun") is None
    keep(tmp_path, [replace(one, arm="begun") if one.arm == "auto" else one for one in coarse()])
    found = judged_alone(REGISTERED, tmp_path, "begun")
    assert found is not None
    (case,) = found["cases"]
    assert case["verdict"] == "better"
    assert round(case["minus_all"]["value"], 1) == -0.1
    # all falls by 0.1 from 100 to 150 steps; a sixtieth more of 100 steps takes a part of that.
    assert -0.1 < case["minus_all_at_equal_cost"]["value"] < -0.09
    assert case["rates"] == {"all": 0.008, "begun": 0.008}
    assert (found["pooled"]["better"], found["pooled"]["worse"], found["registered_cases"]) == (1, 0, 1)
    keep(tmp_path / "placement", coarse())
    written = page(assembled(tmp_path) | {"start": found}, tmp_path)
    assert "**Better in 1 of 1 unseen cases, worse in 0**" in written
    assert "Ranks by explained variance" not in written
    written = page(assembled(tmp_path) | {"ranks": found}, tmp_path)
    assert "Judged so far: 1 of 1" in written
    assert "eva − all" in written
