"""Scans and trial training on small models, and studies with an arm that a scan places."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
import torch
from tests.signals.brute import examples
from tests.tiny import tiny_model
from tests.training.small import wrap

from loratlas.anatomy.read import read
from loratlas.errors import Interrupted, ModelError, SettingsError
from loratlas.placement.plan import Plan
from loratlas.scan.plan_from_scores import candidates, gains, plan_from
from loratlas.scan.run_scan import calibration, scan
from loratlas.scan.scores import STEP, Scan
from loratlas.scan.trial_runs import BATCH, SEEDS, STEPS, TrialListener
from loratlas.scan.trial_training import probe, yields
from loratlas.signals.registry import untrained
from loratlas.study.execution.ledger import Ledger
from loratlas.study.inputs import prepare as preparing
from loratlas.study.run_study import run_study
from loratlas.study.spec.spec_file import parse_spec

COST = SEEDS * STEPS * BATCH / STEP
"""Of the trials without removals, in training steps of `STEP` rows."""


@pytest.fixture(scope="module")
def found():
    model = tiny_model("llama")
    anatomy = read(model.config)
    signals = [*untrained(), "probe_yield"]
    return model, anatomy, scan(model, anatomy, wrap(examples(40)), signals=signals, most_rows=32, seed=1)


def test_a_scan_survives_its_json(found):
    _, anatomy, scanned = found
    loaded = Scan.from_json(json.loads(json.dumps(scanned.to_json())))
    assert loaded.to_json() == scanned.to_json()
    one, two = (plan_from(each, anatomy, budget="params=2k")[0] for each in (scanned, loaded))
    assert one == two
    assert scanned.cost_in_steps == 2 + COST  # 32 rows, and two trials
    # Gains are kept to six digits.
    assert loaded.readings["gradient"].gains is not None


def test_fewer_rows_than_folds_are_refused(found):
    model, anatomy, _ = found
    with pytest.raises(SettingsError, match="too few"):
        scan(model, anatomy, wrap(examples(9)), most_rows=2)
    small = calibration(wrap(examples(6)), most_rows=128, seed=0, packed=True)
    assert [len(batch.lengths) for batch in small] == [1] * 6


def test_look_ups_are_no_candidates(found):
    with pytest.raises(SettingsError, match="looks rows up"):
        candidates(found[1], "embed")


def test_the_seed_draws_the_rows():
    rows = wrap(examples(40))
    one, same, other = (
        [batch.rows for batch in calibration(rows, most_rows=16, seed=seed, packed=True)]
        for seed in (0, 0, 1)
    )
    assert one == same
    assert one != other


def test_columns_without_ranks_count_by_the_root(found):
    _, anatomy, scanned = found
    sites = candidates(anatomy)
    path = sites[0].path
    high = gains(scanned.readings["stable_rank"], sites)[path]
    assert sum(high[:9]) == pytest.approx(3 * scanned.readings["stable_rank"].values[path])
    low = gains(scanned.readings["alignment"], sites)[path]
    assert low[0] == pytest.approx(1 / scanned.readings["alignment"].values[path])


@pytest.mark.parametrize("together", [True, False])
def test_a_probe_measures_what_each_adapter_gives_back(together: bool, monkeypatch):
    model = tiny_model("llama")
    anatomy = read(model.config)
    sites = candidates(anatomy, "attention@last1 + feedforward@last1")
    rows = wrap(examples(24))
    batches = calibration(rows, most_rows=24, seed=0, packed=True)
    if not together:
        monkeypatch.setattr("loratlas.training.fleet.members.MATRICES", ())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = probe(model, sites, rows, batches, steps=4, packed=True)
    readings = dict(result.readings)
    assert set(readings["probe"].values) == {site.path for site in sites}
    assert all(np.isfinite(value) for value in readings["probe"].values.values())
    assert all(norm > 0 for norm in readings["probe_energy"].values.values())
    descents = readings["probe_descent"].values
    assert any(fell > 0 for fell in descents.values())
    assert readings["probe_yield"].values == pytest.approx(
        {p: (e * max(descents[p], 0)) ** 0.5 for p, e in readings["probe_energy"].values.items()}
    )
    assert result.cost == 2 * (4 + len(sites) * 24 / 16 / 2)
    steps = []
    alone = probe(
        model,
        sites,
        rows,
        batches,
        removals=False,
        steps=4,
        packed=True,
        watch=TrialListener(step=steps.append),
    )
    assert steps == ([2] * 4 if together else [1] * 8)
    del readings["probe"]
    assert alone.readings == readings
    assert (alone.cost, alone.visits, alone.rows) == (2 * 4, 2 * 4 * 16, frozenset(range(24)))
    assert alone.labelled == result.labelled > 0
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)


@pytest.mark.parametrize("together", [True, False])
def test_a_stopped_scan_says_that_it_begins_anew(together: bool, monkeypatch):
    model = tiny_model("llama")
    rows = wrap(examples(24))
    if not together:
        monkeypatch.setattr("loratlas.training.fleet.members.MATRICES", ())

    def stop(event) -> None:
        if event.phase == "trials":
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="the scan was stopped") as stopped:
        scan(model, read(model.config), rows, among="feedforward@last1", trial_steps=4, on_event=stop)
    assert "nothing of it is kept without --out" in stopped.value.found
    assert "resume" not in str(stopped.value)
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_what_overshoots_yields_nothing():
    model = tiny_model("llama")
    sites = candidates(read(model.config), "feedforward")
    rows = wrap(examples(24))
    batches = calibration(rows, most_rows=24, seed=0, packed=True)
    readings = probe(model, sites, rows, batches, steps=8, lr=0.5, removals=False).readings
    against = [path for path, fell in readings["probe_descent"].values.items() if fell < 0]
    assert against
    assert {readings["probe_yield"].values[path] for path in against} == {0.0}


@pytest.mark.parametrize(
    ("energies", "descents", "value", "error"),
    [
        ((1.0, 9.0), (9.0, 1.0), 5.0, 4.0),  # each trial by itself gives 3
        ((1.0, 9.0), (1.0, 9.0), 5.0, 4.0),
        ((4.0, 4.0), (1.0, 9.0), 20**0.5, (36**0.5 - 4**0.5) / 2),
        ((4.0, 4.0), (-2.0, 2.0), 0.0, 8**0.5 / 2),  # nothing gained on average, though one trial gained
        ((4.0, 6.0), (-2.0, -1.0), 0.0, 0.0),
        ((4.0, 4.0), (9.0, 9.0), 6.0, 0.0),
    ],
)
def test_a_yield_and_its_error_belong_to_the_same_means(energies, descents, value, error):
    """Of two trials the means plus and minus their standard errors are the larger and the smaller trial."""
    both = yields([{"a": e} for e in energies], [{"a": d} for d in descents])
    assert both.values["a"] == pytest.approx(value)
    assert both.errors["a"] == pytest.approx(error)


def test_a_probe_knows_that_a_dead_site_is_worth_nothing():
    model = tiny_model("llama")
    sites = candidates(read(model.config), "ffn.up,ffn.down@last1")
    rows = wrap(examples(24))
    model.model.layers[2].mlp.gate_proj.weight.zero_()  # nothing of `up` comes through
    batches = calibration(rows, most_rows=24, seed=0, packed=True)
    readings = probe(model, sites, rows, batches, steps=4, packed=True).readings
    assert readings["probe"].values["model.layers.2.mlp.up_proj.weight"] == pytest.approx(0, abs=1e-6)
    assert readings["probe_energy"].values["model.layers.2.mlp.up_proj.weight"] == pytest.approx(0, abs=1e-6)


SPEC = {
    "name": "auto",
    "model": "demo:llama-mini",
    "data": {"train": "demo:facts-300"},
    "arms": {"full": "all@top/4:1", "auto": "scan"},
    "reference": "full",
    "match": "params",
    "learning_rates": [3e-3],
    "tuning": {"seeds": 1, "rows": 20, "extensions": 0},
    "evaluation": {"seeds": 2, "rows": 16},
    "steps": 1,
    "batch_size": 4,
    "max_length": 64,
    "demonstration": True,
}


def test_trials_that_come_apart_say_why():
    model = tiny_model("llama")
    sites = candidates(read(model.config), "feedforward@last1")
    rows = wrap(examples(24))
    batches = calibration(rows, most_rows=24, seed=0, packed=True)
    with pytest.raises(ModelError, match=r"at step .*, though not on the base itself"):
        probe(model, sites, rows, batches, steps=8, lr=1e30, removals=False)
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"first at model\.layers\.2\.mlp\.up_proj"):
        probe(model, sites, rows, batches, steps=4, removals=False)


def test_a_study_places_an_arm_by_a_scan_and_never_scans_again(tmp_path, monkeypatch):
    spec = parse_spec(SPEC)
    result = run_study(spec, tmp_path / "s", workers=1).to_json()
    (arm,) = [arm for arm in result["arms"] if arm["name"] == "auto"]
    full = next(arm for arm in result["arms"] if arm["name"] == "full")
    assert arm["trainable"] <= full["trainable"]
    assert full["trainable"] - arm["trainable"] < 400
    assert all(row["why"] for row in arm["plan"]["sites"])
    assert result["scan"]["config_digest"] == result["base"]["config_digest"]
    assert result["scan"]["visits"] == COST * STEP  # of the trials, nothing else
    assert "gains" not in result["scan"] or not result["scan"]["gains"]

    def refuse(*_, **__):
        raise AssertionError("scanned again")

    monkeypatch.setattr(preparing, "_scan", refuse)
    again = run_study(spec, tmp_path / "s", workers=1).to_json()
    assert again["arms"][1]["plan"] == arm["plan"]
    facts = Ledger.open(tmp_path / "s").about
    assert Plan.from_json(facts["plans"]["auto"]).why is not None
