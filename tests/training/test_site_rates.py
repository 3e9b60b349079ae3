"""Rates of single sites: by the curvature they met, exactly Adam at that rate, and the same after a kill."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.training.small import adapted, encoded, weights

from loratlas.errors import Interrupted, SettingsError
from loratlas.training.loop import fit
from loratlas.training.run_hooks import RunHook
from loratlas.training.settings import Settings
from loratlas.training.site_rates import WIDEST, CurvatureRates, factors_of, site_of

SETTINGS = Settings(
    steps=12,
    lr=1e-2,
    batch_size=4,
    dtype="float32",
    warmup=0.0,
    schedule="constant",
    compile="off",
    save_every=5,
)


class Weights(RunHook):
    """Weights before and after every step."""

    name = "weights"

    def __init__(self):
        self.steps = []

    def on_gradient(self, run):
        self.before = {name: value.clone() for name, value in run.masters.named()}

    def after_step(self, run, event):
        self.steps.append({name: value - self.before[name] for name, value in run.masters.named()})


def test_a_step_after_the_head_is_adams_at_the_sites_rate():
    rates, seen, plain = CurvatureRates(4), Weights(), Weights()
    fit(adapted(), encoded(), replace(SETTINGS, steps=5), hooks=[rates, seen], packed=True)
    fit(adapted(), encoded(), replace(SETTINGS, steps=5), hooks=[plain], packed=True)
    assert len(set(rates.factors.values())) > 3
    for at in range(4):
        assert all(torch.equal(value, plain.steps[at][name]) for name, value in seen.steps[at].items())
    for name, value in seen.steps[4].items():
        expected = plain.steps[4][name] * rates.factors[site_of(name)]
        assert torch.allclose(value, expected, atol=1e-7), name


def test_curvatures_are_secants_of_both_factors():
    rates, seen, gradients = CurvatureRates(4), Weights(), []

    class Gradients(RunHook):
        name = "gradients"

        def on_gradient(self, run):
            gradients.append(
                {
                    name: value.clone()
                    for group in run.masters.groups
                    for name, value in zip(group.names, group.gradients, strict=True)
                }
            )

    fit(adapted(), encoded(), replace(SETTINGS, steps=5), hooks=[rates, seen, Gradients()], packed=True)
    turned, moved = {}, {}
    for at in range(3):
        for name, step in seen.steps[at].items():
            site = site_of(name)
            turn = gradients[at + 1][name] - gradients[at][name]
            turned[site] = turned.get(site, 0.0) + float((turn * step).sum())
            moved[site] = moved.get(site, 0.0) + float((step * step).sum())
    expected = factors_of({site: turned[site] / moved[site] for site in turned})
    assert rates.factors == pytest.approx(expected, rel=1e-3)


def test_factors_are_bounded_and_their_mean_is_one():
    factors = factors_of({"flat": -1.0, "low": 1e-9, "middle": 1.0, "high": 1e9, "more": 1.0})
    assert factors["flat"] == factors["low"] == max(factors.values())
    assert factors["low"] / factors["high"] == pytest.approx(WIDEST**2)
    assert torch.tensor(list(factors.values())).log().mean() == pytest.approx(0.0, abs=1e-6)
    assert factors_of({"a": 0.0, "b": -1.0}) == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 9])
@pytest.mark.parametrize("lr", [1e-2, "auto"])
def test_killed_and_resumed(tmp_path, stop, lr):
    settings = replace(SETTINGS, steps=50, lr=lr, site_rates="curvature")
    whole = adapted()
    reference = fit(whole, encoded(20), settings, packed=True)

    def interrupt(event):
        if event.step == stop:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        fit(adapted(), encoded(20), settings, out=tmp_path, on_step=interrupt, packed=True)
    resumed = adapted()
    result = fit(resumed, encoded(20), settings, out=tmp_path, resume=True, packed=True)
    weight = weights(resumed)
    assert all(torch.equal(value, weight[name]) for name, value in weights(whole).items())
    assert (result.lr, result.train_nll) == (reference.lr, reference.train_nll)


def test_auto_with_site_rates_is_the_run_of_its_rate():
    settings = replace(SETTINGS, steps=50, lr="auto", site_rates="curvature")
    auto = adapted()
    result = fit(auto, encoded(20), settings, packed=True)
    given = adapted()
    fit(given, encoded(20), replace(settings, lr=result.lr), packed=True)
    weight = weights(given)
    assert all(torch.equal(value, weight[name]) for name, value in weights(auto).items())


def test_a_run_that_is_over_before_curvatures_are_known_is_refused():
    with pytest.raises(SettingsError, match="at least 40 steps"):
        fit(adapted(), encoded(), replace(SETTINGS, steps=4, site_rates="curvature"), packed=True)
    with pytest.raises(SettingsError, match="site_rates"):
        Settings(site_rates="steep")
