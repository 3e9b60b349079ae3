"""What the advice says of itself is what the bench measured on cases that chose nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks.dynamic.judging.placement import summary
from benchmarks.dynamic.judging.scans import SEEN, UNSEEN, over_seeds, said, scans, third

from loratlas.scan import advice
from loratlas.scan.advice import DECIDED_BEFORE, DECIDES, about_length, auto_record, judged, track_record
from loratlas.scan.scores import SCHEMA, VERSION, Scan
from loratlas.scan.trial_runs import LR

RESULTS = Path(__file__).parents[2] / "benchmarks/results"


def test_the_advice_is_the_newest_result():
    kept, moves = (
        json.loads((RESULTS / name).read_text(encoding="utf-8"))
        for name in ("placement.json", "earlier/placement-2.json")
    )
    assert json.loads(json.dumps(summary(kept, moves))) == judged()
    assert all(case["unseen"] for case in kept["cases"])


def test_a_score_that_was_never_measured_says_so():
    assert "was not measured" in track_record("fisher")
    assert f"plans by {DECIDES} lost" in track_record(DECIDES)
    assert "The scan's own steps are not counted" in track_record("gradient")


def test_what_is_printed_of_the_deciding_score_has_both_sides_of_its_choice():
    """What it lost where it was preferred, what the one before lost there, and where it fails."""
    found, printed = judged()["scans"], track_record(DECIDES)
    assert printed.startswith(
        "Measured by training, on 3 held-out cases: plans by probe_energy lost 6 % (0 to 23 %)"
    )
    assert "ended at -0.363 nats per token (-0.543 to -0.182; llama-mini gsm8k, 9 plans)" in printed
    assert "On the 4 cases by which probe_yield was chosen they lost 54 % (-2 to 99 %)" in printed
    assert "at worst at +0.024 nats per token (-0.293 to +0.341; llama-mini retrieval)" in printed
    assert "than probe_yield, which lost 35 % (20 to 51 %) there" in printed
    # What a choice was made on says nothing of what was chosen.
    assert found["seen"]["chose"] == DECIDED_BEFORE not in found["seen"]["columns"]
    assert "by which" not in track_record(DECIDED_BEFORE)
    assert "decides" not in track_record("gradient")


def test_a_score_of_trials_says_at_which_rate_they_train():
    assert f"Its trials train at a learning rate of {LR:g}, whatever the run's is." in track_record(DECIDES)
    assert "rate" not in track_record("gradient")


def test_the_third_case_counts_only_where_its_plans_were_trained():
    assert track_record("gradient").startswith("Measured by training, on 2 held-out cases")
    kept = third()
    assert (kept["plans"], kept["seeds"], set(kept["minus_all"])) == (9, 3, {DECIDES, DECIDED_BEFORE})


def test_what_is_kept_of_scans_is_what_the_losses_say():
    assert not set(SEEN) & set(UNSEEN)
    assert json.loads(json.dumps(said(scans()))) == judged()["scans"]


def test_an_interval_over_three_seeds_is_students():
    """1, 2, 6: mean 3, standard deviation √7, t of 2 degrees of freedom 4.3027."""
    found = over_seeds(np.array([1.0, 2.0, 6.0]))
    assert found.value == pytest.approx(3.0)
    assert found.high - found.value == pytest.approx(4.3027 * (7 / 3) ** 0.5, rel=1e-4)
    assert found.high - found.value == pytest.approx(found.value - found.low)


def test_the_length_of_trials_is_judged_by_the_score_that_places():
    assert "by probe_energy after 40 steps ended at 3.67 and 2.07 nats, after 80 at 3.76" in (
        about_length(40) or ""
    )
    assert "by probe_yield after 20 steps ended at 3.65 and 2.25" in (about_length(20, "probe_yield") or "")


def test_a_scan_of_before_was_decided_by_the_score_of_its_time():
    """Files that do not say by what were written while yields decided, and go on being so."""
    plain = dict.fromkeys(("model", "model_type", "config_digest", "source", "digest"), "x")
    counts = dict.fromkeys(("rows", "tokens", "labelled", "loss", "settled", "cost_in_steps", "seconds"), 1)
    old = {"schema": SCHEMA, "version": VERSION, "signals": [], "scores": [], **plain, **counts}
    assert Scan.from_json(old).by == "probe_yield" != DECIDES


def test_what_auto_is_worth_has_counts_mean_steps_and_share(monkeypatch: pytest.MonkeyPatch):
    mean = {"value": -0.05, "low": -0.1, "high": 0.02}
    pooled = {"better": 3, "worse": 1, "cases": 9, "mean": mean, "steps_saved": 11.6}
    pooled["share_lost"] = {"value": 0.07, "low": -0.03, "high": 0.14}
    moves = {"better": 4, "worse": 3, "cases": 9}
    real = {"signal": "weighted", "cases": []}
    found = {"pooled": pooled, "signals": {"energy": {**moves, "mean": mean}}, "real": real}
    monkeypatch.setattr(advice, "judged", lambda: {"inside": found})
    said = auto_record()
    assert "better in 3, worse in 1 of 9 held-out cases" in said
    assert "-0.050 (-0.100 to +0.020) nats per token in the mean, 12 steps saved" in said
    assert "7 % (-3 % to 14 %) lost of what `all` loses" in said
    assert "Moves alone" not in said
    found["signals"]["weighted"] = {**moves, "mean": mean, "finer": None}
    assert "begins them: better in 4, worse in 3 of 9. A study" in auto_record()
    found["signals"]["weighted"] = {**moves, "mean": mean, "finer": {"better": 1, "worse": 2, "cases": 3}}
    assert "worse in 3 of 9 (1 and 2 with rates tuned finer)." in auto_record()
    assert "moves by weighted, adapters begun as PEFT begins them, were better in 4" in auto_record(
        "weighted"
    )
    assert "On real bases" not in auto_record("weighted")
    tried = {"base": "smollm2-135m", "task": "nl2bash", "budget": "all:8", "steps": 200, "seeds": 1}
    real["cases"] = [{**tried, "minus_all": {"value": 0.023, "low": 0.003, "high": 0.043}}]
    assert "seeds: smollm2-135m nl2bash all:8, 200 steps +0.023 (+0.003 to +0.043). A study" in auto_record(
        "weighted"
    )
    assert "On real bases" not in auto_record("energy")
    assert "moves by energy, adapters begun as PEFT begins them, were better in 4" in auto_record("energy")
    assert "was not measured" in auto_record("attention")
    pooled["share_lost"] = {"value": None, "low": None, "high": None}
    assert "lost of what" not in auto_record()
    found["pooled"] = None
    assert "not measured yet" in auto_record()
