"""The oracle bench's arithmetic on made-up runs, and its choices on the embedded base's anatomy; nothing is trained."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from benchmarks.oracle.choices import Choice, choices, keep, kept, merged
from benchmarks.oracle.judge import AUTO, CHOSEN_ON, against_all, record, report
from benchmarks.oracle.page import page
from benchmarks.oracle.renew import joined
from benchmarks.oracle.rules import Given
from benchmarks.oracle.run import cases, spec_of
from benchmarks.oracle.tasks import SIZES, TASKS
from benchmarks.oracle.truth import Truth, keep_losses

from loratlas.anatomy.read import read
from loratlas.errors import SettingsError
from loratlas.placement.budget import cost_of_ranks
from loratlas.placement.plan import place
from loratlas.scan.plan_from_scores import candidates
from loratlas.scan.scores import Scan
from loratlas.signals.column import Column
from loratlas.signals.measure_signals import Reading
from loratlas.sources import model_source

ARMS = {
    "all": ("preset", 2.00, 2.02),
    "attention": ("preset", 2.20, 2.25),
    "ffn.up": ("role", 2.10, 2.10),
    "random 1": ("random", 2.30, 2.28),
    "random 2": ("random", 2.30, 2.32),
    "rule gradient": ("rule", 1.97, 2.00),
    "rule eva": ("rule", 1.95, 2.05),
}
"""Choice → kind, screening loss, fresh loss."""


def case(name: str = "mini facts all:1", *, noise: float = 0.001, seed: int = 0) -> Truth:
    random = np.random.default_rng(seed)
    tokens = np.full(50, 4.0)
    losses = {
        arm: {s: tokens * (fresh + noise * random.standard_normal() + 0.3 * np.sin(np.arange(50)) + s / 10)
              for s in (0, 1, 2)}
        for arm, (_, _, fresh) in ARMS.items()
    }  # fmt: skip
    fresh = {
        arm: float(np.mean([x.sum() / tokens.sum() for x in seeds.values()])) for arm, seeds in losses.items()
    }
    return Truth(
        name=name,
        steps=40,
        screened={arm: screened for arm, (_, screened, _) in ARMS.items()},
        fresh=fresh,
        losses=losses,
        tokens=tokens,
        kinds={arm: kind for arm, (kind, _, _) in ARMS.items()},
        predicted={
            "gradient": {arm: -told for arm, (_, _, told) in ARMS.items()},
            "activation": {arm: told for arm, (_, _, told) in ARMS.items()},
        },
        base=3.0,
        cost=2.0,
    )


MADE = {arm: Choice(kind=kind, placement="all:1") for arm, (kind, _, _) in ARMS.items()} | {
    "rule probe": Choice(kind="rule", placement="all:1", same_as="all")
}


def judged(*cases: Truth):
    """Records as they are read from their files, and the report on them."""
    records = json.loads(json.dumps([record(case, MADE) for case in cases]))
    return records, report(records)


def test_regret_has_two_bounds():
    told = case()
    assert told.winner == "rule eva"  # it looked best on the screening seeds
    regret = told.regret("rule gradient")
    assert regret["lower"] == pytest.approx(2.00 - 2.05, abs=0.005)
    assert regret["lower_ci"][0] < regret["lower"] < regret["lower_ci"][1] < 0
    assert regret["upper"] == pytest.approx(0, abs=1e-9)
    assert told.regret("rule eva")["lower_ci"] == [0.0, 0.0]
    assert told.scale == pytest.approx(0.30, abs=0.005)


def test_relative_regret_is_against_random_plans():
    records, found = judged(case(seed=0), case("mini alpaca all:1", seed=1))
    rules = {row["rule"]: row for row in found["rules"]}
    assert rules["random"]["upper"] == 1
    assert rules["rule gradient"]["upper"] == pytest.approx(0, abs=0.01)
    assert rules["all"]["upper"] == pytest.approx(0.02 / 0.30, abs=0.01)
    # A rule whose plan is another choice's has that choice's runs.
    assert rules["rule probe"]["upper"] == rules["all"]["upper"]
    assert found["rules"][0]["rule"] == "rule gradient"
    # What a score would pick of the common choices: never a rule's own plan.
    assert records[0]["contestants"]["pick gradient"] == "all"
    assert records[0]["contestants"]["pick activation"] == "random 2"


def test_auto_is_held_against_rank_1_everywhere():
    told = case()
    made = MADE | {AUTO: Choice(kind="rule", placement="all:1", same_as="rule gradient")}
    found = against_all(made, told.losses, told.tokens)
    assert found is not None
    assert found["difference"] == pytest.approx(2.00 - 2.02, abs=0.005)
    assert found["better"]
    assert found["non_inferior"]
    assert against_all(MADE, told.losses, told.tokens) is None  # this set has no plan of auto's


def test_auto_is_told_apart_where_nothing_of_it_was_chosen():
    def told(name: str, seed: int) -> dict:
        made = MADE | {AUTO: Choice(kind="rule", placement="all:1", same_as="rule eva")}
        return record(case(name, seed=seed), made)

    seen, new = told(CHOSEN_ON[0], 0), told("mini alpaca all:1", 1)
    found = report([seen, new])["unseen"]
    assert found["cases"] == ["mini alpaca all:1"]
    assert found["upper"] == pytest.approx(new["choices"]["rule eva"]["upper"] / new["scale"])
    assert found["upper_everywhere"] == pytest.approx(new["choices"]["all"]["upper"] / new["scale"])
    assert report([seen])["unseen"] is None


def test_correlation_and_what_is_left_out():
    _, found = judged(case(seed=0), case("mini alpaca all:1", seed=1))
    by = {row["column"]: row for row in found["correlation"]}
    assert by["gradient"]["rho"] > 0.95
    assert by["activation"]["rho"] < -0.95
    assert by["gradient"]["ci"][0] < by["gradient"]["rho"]
    assert [row["rule"] for row in found["left_out"]] == ["rule gradient", "rule gradient"]


def test_fresh_losses_are_kept_row_by_row(tmp_path):
    told = case()
    keep_losses(told, tmp_path / "case.parquet")
    table = pq.read_table(tmp_path / "case.parquet").to_pylist()
    assert {(row["choice"], row["seed"]) for row in table} == {(arm, s) for arm in ARMS for s in (0, 1, 2)}
    for row in table:
        assert row["nll"] == pytest.approx(told.losses[row["choice"]][row["seed"]], rel=1e-6)
        assert row["tokens"] == told.tokens.tolist()


def test_noise_makes_a_tie_that_counts_in_nats_only():
    quiet, loud = case(seed=0), case("mini alpaca all:1", noise=0.2, seed=1)
    assert not quiet.tie
    assert loud.tie
    records, found = judged(quiet, loud)
    assert {row["cases"] for row in found["rules"]} == {1}
    assert [told["tie"] for told in records] == [False, True]
    assert "upper" in records[1]["choices"]["all"]
    text = page({**found, "command": "x", "cases": records})
    assert "| mini alpaca all:1 (tie) |" in text
    assert "| rule gradient |" in text


@pytest.fixture(scope="module")
def given():
    anatomy = replace(read(model_source("demo:llama-mini")), model="demo:llama-mini")
    sites = candidates(anatomy)
    random = np.random.default_rng(0)

    def reading(name: str, pays: str = "high", **more) -> Reading:
        values = {site.path: float(random.uniform(0.5, 2)) for site in sites}
        column = Column(name=name, unit="u", pays=pays, adam="none")
        return Reading(column=column, values=values, **more)

    readings = {
        "gradient": reading("gradient"),
        "gradient_energy": reading("gradient_energy"),
        "activation": reading("activation"),
        "alignment": reading("alignment", "low"),
        "attention": reading("attention"),
        "spectrum": reading("spectrum", "low"),
        "probe": reading("probe", silent="every value is 0"),
        "probe_energy": reading("probe_energy"),
    }
    scan = Scan(
        model="m", model_type="llama", config_digest=anatomy.config_digest, source="s", digest="d",
        readings=readings, by="gradient", rows=8, visits=8,
        tokens=80, labelled=40, loss=3.0, settled=True, cost_in_steps=0.5, seconds=1.0,
    )  # fmt: skip
    ranks = {site.path: number % 3 for number, site in enumerate(sites)}
    return Given(anatomy=anatomy, scan=scan, budget="like=all:1", adalora=lambda: ranks)


def test_every_choice_spends_the_same(given, tmp_path, capsys):
    made = choices(given, SIZES["cpu"])
    kinds = [choice.kind for choice in made.values()]
    assert (kinds.count("preset"), kinds.count("role"), kinds.count("random")) == (4, 7, 3)
    assert "rule probe" not in made  # silent: it abstains
    assert "rule probe makes no choice" in capsys.readouterr().out
    allowed = cost_of_ranks(given.anatomy, place(given.anatomy, "all:1").ranks, "params")
    for name, choice in made.items():
        plan = place(given.anatomy, choice.placement)
        assert 0.97 * allowed <= plan.trainable <= allowed, name
    assert choices(given, SIZES["cpu"]) == made
    keep(tmp_path / "choices.json", made)
    assert kept(tmp_path / "choices.json") == made
    full = choices(given, replace(SIZES["full"], rules=("gradient",)))
    assert sum(choice.kind == "pair" for choice in full.values()) == 28
    assert sum(choice.kind == "hybrid" for choice in full.values()) == 6


def test_a_base_with_fused_projections_has_peft_s_default_for_q_v(given):
    anatomy = read(str(Path(__file__).parents[2] / "bases/gpt2-mini"))
    made = choices(replace(given, anatomy=anatomy), replace(SIZES["minute"], rules=(), roles=True))
    assert {row.site.role for row in place(anatomy, made["q,v"].placement).rows} == {"attn.qkv"}
    assert made["attn.qkv"].same_as == "q,v"


def test_plop_takes_the_types_with_the_lowest_mean(given):
    means: dict[str, list[float]] = {}
    for site in candidates(given.anatomy):
        means.setdefault(site.role, []).append(given.scan.readings["alignment"].values[site.path])
    lowest = sorted(means, key=lambda role: np.mean(means[role]))[:3]
    made = choices(given, SIZES["minute"])
    assert {row.site.role for row in place(given.anatomy, made["rule plop"].placement).rows} == set(lowest)


def test_a_case_is_a_study(given, tmp_path):
    (case_,) = cases(SIZES["minute"], tmp_path)
    spec = spec_of(case_, SIZES["minute"], choices(given, SIZES["minute"]))
    assert (spec.steps, spec.reference, spec.tuning.seeds, spec.evaluation.seeds) == (2, "all", 1, 2)
    whole = cases(SIZES["cpu"], tmp_path)
    assert [each.task for each in whole] == ["retrieval", "nl2bash", "e2e", "facts-300", "alpaca"]
    assert len({each.folder for each in cases(SIZES["full"], tmp_path)}) == 2 * 2 * len(TASKS)
    assert json.dumps(spec.to_json())
    other = cases(replace(SIZES["minute"], bases=("bases/gpt2-mini",), steps=None), tmp_path)[0]
    assert (other.name, other.folder.name) == ("gpt2-mini retrieval all:1", "gpt2-mini-retrieval-all1")
    assert TASKS["retrieval"].steps_on(other.base) == 16


def kept_record():
    """A kept case: two presets and what two rules chose then."""
    told = {
        "all": Choice(kind="preset", placement="all:1"),
        "attention": Choice(kind="preset", placement="attention:2"),
        "rule eva": Choice(kind="rule", placement="attn.v:3"),
        "rule plop": Choice(kind="rule", placement="all:1", same_as="all"),
    }
    return {"choices": {name: asdict(choice) for name, choice in told.items()}}


def test_a_renewed_rule_leaves_its_earlier_plan_in_the_set(given):
    made = {"rule eva": Choice(kind="rule", placement="attn.q:3")}
    found, names = merged(kept_record(), made, given.anatomy)
    assert names == {"all": "all", "attention": "attention", "earlier eva": "rule eva"}
    assert found["rule eva"] == made["rule eva"]  # to be trained
    assert found["earlier eva"] == Choice(kind="earlier", placement="attn.v:3")
    assert found["rule plop"].same_as == "all"


def test_a_rule_that_the_bench_no_longer_has_is_an_earlier_one(given):
    record_ = kept_record()
    record_["choices"]["rule gone"] = asdict(Choice(kind="rule", placement="attn.o:3"))
    record_["choices"]["rule lost"] = asdict(Choice(kind="rule", placement="all:1", same_as="all"))
    found, names = merged(record_, {}, given.anatomy)
    assert found["earlier gone"] == Choice(kind="earlier", placement="attn.o:3")
    assert names["earlier gone"] == "rule gone"
    assert "rule gone" not in found
    assert "rule lost" not in found
    assert found["rule eva"].kind == "rule"


def test_a_renewed_rule_that_chooses_what_was_trained_trains_nothing(given):
    found, names = merged(
        kept_record(), {"rule eva": Choice(kind="rule", placement="attn.v:3")}, given.anatomy
    )
    assert names["rule eva"] == "rule eva"
    assert "earlier eva" not in found
    other = {"rule eva": Choice(kind="rule", placement="attention:2")}
    found, names = merged(kept_record(), other, given.anatomy)
    assert found["rule eva"].same_as == "attention"
    assert "rule eva" not in names


def test_a_rule_that_goes_back_has_its_earlier_runs(given):
    record_ = kept_record()
    record_["choices"]["earlier eva"] = asdict(Choice(kind="earlier", placement="attn.q:3"))
    found, names = merged(record_, {"rule eva": Choice(kind="rule", placement="attn.q:3")}, given.anatomy)
    assert found["rule eva"] == Choice(kind="rule", placement="attn.q:3")
    assert names["rule eva"] == "earlier eva"
    assert names["earlier eva 2"] == "rule eva"
    assert "earlier eva" not in found


def test_kept_and_new_losses_are_one_case(given, tmp_path):
    old = case()
    record_ = json.loads(json.dumps(record(old, MADE)))
    for name in record_["choices"]:
        record_["choices"][name]["placement"] = {"rule eva": "attn.v:3", "attention": "attention:2"}.get(
            name, "all:1" if name in ("all", "rule probe") else f"all:{2 + len(name)}"
        )
    path = tmp_path / "case.json"
    keep_losses(old, path.with_suffix(".parquet"))
    chosen, names = merged(record_, {"rule eva": Choice(kind="rule", placement="attn.q:3")}, given.anatomy)
    new = replace(
        old,
        screened={"all": 2.0, "rule eva": 1.9},
        fresh={"all": old.fresh["all"], "rule eva": 1.8},
        losses={"all": old.losses["all"], "rule eva": {s: x - 1 for s, x in old.losses["all"].items()}},
    )
    told = joined(new, record_, path, chosen, names, given.scan, given.anatomy)
    assert told.fresh["rule eva"] == 1.8
    assert told.fresh["earlier eva"] == pytest.approx(old.fresh["rule eva"])
    assert told.kinds["earlier eva"] == "earlier"
    assert told.winner == "rule eva"
    assert set(told.losses) == set(told.fresh) == set(told.screened)
    assert set(told.predicted["gradient"]) == set(told.fresh)
    assert "rule probe" not in told.fresh  # the same as all
    other = replace(new, losses=dict(new.losses) | {"all": {s: x + 1 for s, x in old.losses["all"].items()}})
    with pytest.raises(SettingsError, match="nats per token from its kept loss"):
        joined(other, record_, path, chosen, names, given.scan, given.anatomy)
