"""From records and a registration to placement.json and its page; nothing is trained."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.dynamic.arms import hooks_of, plan_of
from benchmarks.dynamic.cases import Case
from benchmarks.dynamic.judging import judge
from benchmarks.dynamic.judging.placement import FOLDERS, assemble, losses_of
from benchmarks.dynamic.pages.further_pages import sections
from benchmarks.dynamic.pages.placement_page import earlier_page, page
from benchmarks.dynamic.preregistration import FILE, Preregistered, first_fresh, load
from benchmarks.dynamic.records import Record, read_records
from benchmarks.dynamic.work import HeldOut

from loratlas.dynamic.controller import PlacementController
from loratlas.files import write_json
from loratlas.sources import read

TOKENS = np.array([2.0, 4.0, 6.0, 3.0])
NOISE = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(judge, "DRAWS", 100)


def case_of(task: str, *, unseen: bool = True) -> dict[str, object]:
    return {
        "base": "demo:llama-mini",
        "task": task,
        "budget": "like=all:1",
        "steps": 100,
        "batch": 8,
        "held_out": 4,
        "unseen": unseen,
    }


def registered(*tasks: str, **auto: object) -> Preregistered:
    content = {
        "cases": [case_of(task) for task in tasks],
        "arms": [["all", "auto"], ["half"]],
        "policies": {"auto": {"policy": "weighted", "head": 0.1, **auto}},
        "rates": [0.008, 0.0128],
        "tuning_seeds": 1,
        "fresh_seeds": 2,
        "longer": [1.5],
    }
    return Preregistered(digest="d" * 64, commit="c" * 40, content=content)


def assembled(folder: Path) -> dict[str, Any]:
    return assemble(registered("sorting", "style"), folder)


def keep(folder: Path, arm: str, loss: float, seed: int, *lengths: int) -> None:
    Record(
        arm=arm,
        rate=0.008,
        seed=seed,
        placement=f"{arm}:1",
        trainable=10,
        lengths={
            length: TOKENS * (loss - 0.1 * (length > 100)) + 0.001 * NOISE.normal(size=4)
            for length in lengths
        },
    ).write(folder)


def judged(folder: Path, task: str, *, auto: float = 1.9, halves: int = 2) -> Case:
    case = Case(base="demo:llama-mini", task=task, batch=8, held_out=4)
    folder = folder / FOLDERS["run"] / case.name
    folder.mkdir(parents=True)
    (folder / "case.json").write_text(json.dumps({"tokens": TOKENS.tolist()}))
    for number in range(2):
        seed = first_fresh(case) + number
        keep(folder, "all", 2.0, seed, 100, 150)
        keep(folder, "auto", auto, seed, 100)
        if number < halves:
            keep(folder, "half", 1.8, seed, 100)
    keep(folder, "all", 2.0, 1, 100)
    return case


def test_a_case_is_told_in_nats_steps_and_shares(tmp_path: Path):
    judged(tmp_path, "sorting")
    result = assembled(tmp_path)
    (case,) = result["cases"]
    assert case["auto_minus_all"]["value"] == pytest.approx(-0.1, abs=0.01)
    assert case["share_lost"]["value"] == pytest.approx(0.5, abs=0.05)
    # The curve falls by 0.1 to 150 steps, which is where the arm stands.
    assert case["steps_saved"]["value"] == pytest.approx(50, abs=6)
    assert case["verdict"] == "better"
    assert case["arms"]["all"]["rate"] == 0.008
    assert result["registered_cases"] == 2
    assert result["preregistered"] == {
        "digest": "d" * 64,
        "commit": "c" * 40,
        "code_changed": [],
    }


def test_no_judged_case_is_left_out_of_the_pool(tmp_path: Path):
    judged(tmp_path, "sorting")
    judged(tmp_path, "style", auto=2.1)
    result = assembled(tmp_path)
    pooled = result["pooled_unseen"]
    assert (pooled["better"], pooled["worse"], pooled["cases"]) == (1, 1, 2)
    assert pooled["share_lost"]["value"] == pytest.approx((0.1 + 0.3) / 0.4, abs=0.05)
    assert pooled["chosen_on_other_cases"]["arms"] == ["half", "half"]
    written = page(result, tmp_path)
    assert "Not measured yet: `python -m benchmarks.dynamic.rates`" in written
    assert "better than `all` in 1 of 2, worse in 1" in written
    assert "The best is that of all, auto, half." in " ".join(written.split())
    assert "llama-mini style" in written


def test_auto_is_compared_with_every_arm_and_with_the_static_one_that_tuning_would_have_chosen(
    tmp_path: Path,
):
    """In hindsight means by the tuning seed: the arm that was luckier there counts, worse on fresh seeds or not."""
    for task, auto in (("sorting", 1.9), ("style", 2.1)):
        case = judged(tmp_path, task, auto=auto)
        folder = tmp_path / FOLDERS["run"] / case.name
        for arm, tuning, fresh in (
            ("attention", 1.95, 2.2),
            ("feedforward", 2.05, 1.7),
            ("flexlora", 1.0, 2.0),
            ("gora", 2.0, 2.2),
        ):
            keep(folder, arm, tuning, 1, 100)
            for number in range(2):
                keep(folder, arm, fresh, first_fresh(case) + number, 100)
    result = assembled(tmp_path)
    assert [case["best_static"]["arm"] for case in result["cases"]] == ["attention", "attention"]
    assert [round(case["best_static"]["auto_minus"]["value"], 1) for case in result["cases"]] == [-0.3, -0.1]
    assert round(result["cases"][0]["arms"]["feedforward"]["auto_minus"]["value"], 1) == 0.2
    pooled = result["pooled_unseen"]
    assert pooled["best_static"] == {
        "delta": 0.01,
        "noninferior": 2,
        "inferior": 0,
        "better": 2,
        "worse": 0,
        "cases": 2,
    }
    counts = {arm: (found["better"], found["worse"]) for arm, found in pooled["auto_against"].items()}
    assert counts == {
        "all": (1, 1),
        "half": (0, 2),
        "attention": (2, 0),
        "feedforward": (0, 2),
        "flexlora": (1, 1),
        "gora": (2, 0),
    }
    assert pooled["auto_against"]["feedforward"]["mean"]["value"] == pytest.approx(0.3, abs=0.01)
    written = " ".join(earlier_page(result).split())
    assert "(flexlora), `auto` is better in 1 of 2 comparisons and worse in 1." in written
    assert "(gora), `auto` is better in 2 of 2 comparisons and worse in 0." in written
    assert "| case | all | attention | feedforward | gora |" in written
    assert "| case | auto | half | flexlora |" in written
    assert "no more than 0.01 nats above it in 2 of 2 cases, and worse in 0." in written
    assert "| llama-mini style | attention | -0." in written
    # Without a move flexlora is `all` again, here with a loss of its own.
    assert (
        "| llama-mini sorting | 0.008 | 0.008 | -0.0" in written
        or "| llama-mini sorting | 0.008 | 0.008 | +0.0" in written
    )


def test_a_later_registration_has_a_folder_of_its_own_and_its_start_alone_is_a_static_arm(tmp_path: Path):
    case = judged(tmp_path, "sorting")
    for arm, loss in (("begun", 1.85), ("auto", 1.9)):
        keep(tmp_path / FOLDERS["run"] / case.name, arm, loss, 1, 100)
    keep(tmp_path / FOLDERS["run"] / case.name, "begun", 1.85, first_fresh(case), 100)
    keep(tmp_path / FOLDERS["run"] / case.name, "begun", 1.85, first_fresh(case) + 1, 100)
    (tmp_path / FOLDERS["run"]).rename(tmp_path / FOLDERS["auto"])
    assert assembled(tmp_path)["pooled_unseen"] is None
    result = assemble(registered("sorting", "style", init="eva"), tmp_path, trained="auto")
    assert result["cases"][0]["best_static"]["arm"] == "begun"
    written = " ".join(page(result, tmp_path).split())
    assert "| case | all | begun |" in written
    assert "preregistered_auto.json" in written
    assert "preregistered.json" in earlier_page(result)


def test_what_other_benches_found_stands_on_the_page(tmp_path: Path):
    arms = [
        {"arm": "all", "nll": 2.0, "moves": [0, 0], "minus_all": 0.0, "standard_error": 0.0},
        {"arm": "auto", "nll": 1.99, "moves": [4, 3], "minus_all": -0.01, "standard_error": 0.005},
    ]
    (tmp_path / "moving").mkdir()
    scenario = {"base": "llama-mini", "scenario": "shift", "steps": 100, "lr": 0.012, "arms": arms}
    write_json(
        tmp_path / "moving" / "controls.json",
        {"task": "nl2bash", "shift": 0.3, "seeds": [1, 2], "scenarios": [scenario]},
    )
    case = {"case": "llama-mini e2e", "tuned": 0.01, "auto": [{"chosen": 0.016, "gap": 0.0021}]}
    rule = {"runs": 1, "close": 1.0, "mean_gap": 0.0021, "worst_gap": 0.0021}
    write_json(
        tmp_path / "moving" / "rates.json",
        {"summary": {"price": {"mean": 0.0612, "most": 0.1}, "rules": {"auto": rule}}, "cases": [case]},
    )
    written = "\n".join(sections(tmp_path))
    # Two seeds leave one degree of freedom: 12.7 standard errors, where the normal quantile would say 1.96.
    assert "| auto | 3.5 | 1.9900 | -0.0100 ± 0.0635 |" in written
    assert "| all | 0.0 | 2.0000 | – |" in written
    assert "| llama-mini e2e | 0.01 | 0.016 | +0.0021 |" in written
    assert "6.12 % of the run in the mean, 10 % at most" in " ".join(written.split())
    assert "Not measured yet: `python -m benchmarks.moving_cost`" in written


def test_what_reading_costs_is_given_to_all(tmp_path: Path):
    judged(tmp_path, "sorting")
    (tmp_path / FOLDERS["run"]).rename(tmp_path / FOLDERS["auto"])
    free, read = (
        assemble(registered("sorting", **auto), tmp_path, trained="auto") for auto in ({}, {"init": "eva"})
    )
    (case,) = free["cases"]
    assert case["auto_minus_all_at_equal_cost"] == case["auto_minus_all"]
    assert "at equal cost" not in page(free, tmp_path)
    (case,) = read["cases"]
    # Of the 0.1 nats that all falls by until 150 steps, those of 1.67 steps more: a 24th in the logarithm.
    gained = case["auto_minus_all_at_equal_cost"]["value"] - case["auto_minus_all"]["value"]
    assert gained == pytest.approx(0.1 * np.log(1 + 1 / 60) / np.log(1.5), abs=1e-3)
    assert read["pooled_unseen"]["at_equal_cost"]["better"] == 1
    written = " ".join(page(read, tmp_path).split())
    assert "| case | steps | auto − all | at equal cost |" in written
    assert "costs `auto` 1.7 % of the run's work" in written
    assert "| share lost ≤ 5 %, its upper end ≤ 10 % | 50 %" in written
    assert (
        "| better than `all` in two thirds of the cases, worse in none | 1 of 1, worse in 0 | reached |"
        in written
    )


def test_an_arm_without_all_seeds_is_unfinished_and_one_that_diverged_cannot_win(tmp_path: Path):
    case = judged(tmp_path, "sorting", halves=1)
    folder = tmp_path / FOLDERS["run"] / case.name
    measured = losses_of(read_records(folder), HeldOut(TOKENS), 100, first_fresh(case))
    assert measured is not None
    assert set(measured.losses) == {"all", "auto"}
    keep(folder, "half", 1.8, first_fresh(case) + 1)
    measured = losses_of(read_records(folder), HeldOut(TOKENS), 100, first_fresh(case))
    assert measured is not None
    assert np.isinf(measured.by_seed("half")[1])


def test_judging_waits_for_a_commit(tmp_path: Path):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    path = tmp_path / "preregistered.json"
    with pytest.raises(SystemExit, match="missing"):
        load(path)
    subprocess.run([*git, "init", "-q"], cwd=tmp_path, check=True)
    path.write_text("{}")
    with pytest.raises(SystemExit, match="commit it"):
        load(path)
    subprocess.run([*git, "add", path.name], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-qm", "registered"], cwd=tmp_path, check=True)
    first = load(path)
    assert len(first.commit) == 40
    path.write_text('{"cases": []}')
    with pytest.raises(SystemExit, match="not what was committed"):
        load(path)


def test_what_is_registered_can_be_run():
    content = json.loads(FILE.read_text(encoding="utf-8"))
    kept = Preregistered(digest="", commit="", content=content)
    cases = kept.cases()
    assert sum(unseen for _, unseen in cases) >= 8
    assert len({case.name for case, _ in cases}) == len(cases)
    assert content["fresh_seeds"] >= 5
    protocol = kept.protocol(cases[0][0], content["arms"][0])
    assert protocol.arms[0] == "all"
    assert not protocol.drop_hopeless
    anatomy = read("demo:llama-mini")
    for arm, policy in content["policies"].items():
        plan = plan_of(arm, anatomy, "like=all:1", seed=0, policies=content["policies"])
        (hook,) = hooks_of(arm, anatomy, "like=all:1", steps=100, policies=content["policies"])
        assert isinstance(hook, PlacementController)
        assert hook.policy.name == policy["policy"]
        assert hook.budget <= plan.trainable <= 1.5 * hook.budget
        assert hook.schedule.steps(90)[0] == 10
