"""A rate that is decided in the run's own first steps: the run of that rate, whatever was tried and whenever killed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tests.training.small import adapted, encoded, weights

from loratlas.errors import Interrupted, OutputError, SettingsError
from loratlas.training.learning_rate import default_rate
from loratlas.training.loop import fit
from loratlas.training.loss_change import LossChangeAllocation
from loratlas.training.rate_rules import SearchBudget, worse
from loratlas.training.rate_search import RateSearch, rate_search
from loratlas.training.run_hooks import RunHook
from loratlas.training.settings import Settings

AUTO = Settings(steps=60, batch_size=4, dtype="float32", compile="off", save_every=3)
"""Heads of 4 steps, and 6 steps at most at other rates."""


def same(first, second):
    weight = weights(second)
    return all(torch.equal(value, weight[name]) for name, value in weights(first).items())


@pytest.mark.parametrize("asked", ["auto", (1e-3, 1e-1), (1e-3, 1e-2, 1e6), (1e-2, 1e6, 1e30)])
def test_the_run_is_the_one_of_the_chosen_rate(asked):
    settings = replace(AUTO, lr=asked, dropout=0.1)
    auto, descent = adapted(lora_dropout=0.1), LossChangeAllocation(after=1)
    tried, seen = [], []
    result = fit(
        auto,
        encoded(40),
        settings,
        hooks=[descent],
        on_step=lambda event: seen.append((event.step, event.nll, event.lr)),
        on_trial=lambda rate, event: tried.append(rate),
        packed=True,
    )
    assert result.rates is not None
    assert len(result.rates.tried) > 1
    assert result.lr == result.rates.chosen
    given, plain, wanted = adapted(lora_dropout=0.1), LossChangeAllocation(after=1), []
    reference = fit(
        given,
        encoded(40),
        replace(settings, lr=result.lr),
        hooks=[plain],
        on_step=lambda event: wanted.append((event.step, event.nll, event.lr)),
        packed=True,
    )
    assert same(auto, given)
    assert seen == wanted
    assert descent.values() == plain.values()
    assert (result.tokens, result.train_nll) == (reference.tokens, reference.train_nll)
    # The price is what was said beforehand, and no step of the run is in it.
    own = next(trial.steps for trial in result.rates.tried if trial.outcome == "chosen")
    assert len(tried) == own + result.rates.set_aside
    assert 0 < result.rates.set_aside <= 6


class Stop:
    """Ctrl-C after so many steps, those at other rates counted."""

    def __init__(self, after):
        self.left = after

    def __call__(self, *_):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [1, 3, 4, 5, 7])
@pytest.mark.parametrize("asked", ["auto", (1e-3, 1e-2, 1e6)])
def test_killed_within_the_search_and_resumed(tmp_path, after, asked):
    settings = replace(AUTO, lr=asked)
    whole, steps = adapted(), []
    reference = fit(whole, encoded(40), settings, on_step=lambda event: steps.append(event.step), packed=True)
    with pytest.raises(Interrupted, match="resume"):
        fit(adapted(), encoded(40), settings, out=tmp_path, on_trial=Stop(after), packed=True)
    resumed, seen = adapted(), []
    result = fit(
        resumed,
        encoded(40),
        settings,
        out=tmp_path,
        resume=True,
        on_step=lambda event: seen.append(event.step),
        packed=True,
    )
    assert same(whole, resumed)
    assert (result.rates, result.train_nll) == (reference.rates, reference.train_nll)
    assert (result.diverged_at, seen) == (reference.diverged_at, steps)
    assert steps == list(range(1, len(steps) + 1))


def test_killed_after_the_search_and_resumed(tmp_path):
    whole = adapted()
    reference = fit(whole, encoded(40), AUTO, packed=True)
    with pytest.raises(Interrupted):
        fit(adapted(), encoded(40), AUTO, out=tmp_path, on_step=Stop(9), packed=True)
    resumed, tried = adapted(), []
    result = fit(
        resumed,
        encoded(40),
        AUTO,
        out=tmp_path,
        resume=True,
        on_trial=lambda rate, event: tried.append(rate),
        packed=True,
    )
    assert tried == []
    assert same(whole, resumed)
    assert (result.lr, result.rates) == (reference.lr, reference.rates)


def test_of_two_checkpoints_the_later_one_has_the_higher_number(tmp_path):
    numbers = []

    def look(*_):
        numbers.extend(int(path.name[5:]) for path in (tmp_path / "checkpoint").glob("step-*"))

    fit(adapted(), encoded(40), AUTO, out=tmp_path, on_trial=look, on_step=look, packed=True)
    assert numbers == sorted(numbers)


def test_another_search_does_not_take_a_checkpoint_up(tmp_path):
    with pytest.raises(Interrupted):
        fit(adapted(), encoded(40), AUTO, out=tmp_path, on_trial=Stop(2), packed=True)
    for other in (0.01, (0.01, 0.02)):
        with pytest.raises(OutputError, match="another run"):
            fit(adapted(), encoded(40), replace(AUTO, lr=other), out=tmp_path, resume=True, packed=True)


def test_a_rate_that_diverges_is_out():
    settings = replace(AUTO, lr=(1e-2, 1e30), warmup=0.0)
    result = fit(adapted("gpt2", rank=8), encoded(), settings, packed=True)
    assert result.rates is not None
    assert [trial.outcome for trial in result.rates.tried] == ["chosen", "diverged"]
    assert (result.lr, result.diverged) == (1e-2, False)


def test_where_the_first_rate_diverges_lower_ones_are_tried_at_any_price():
    settings = replace(AUTO, lr=(1e-2, 1e28, 1e29, 1e30, 2e30), warmup=0.0)
    result = fit(adapted("gpt2", rank=8), encoded(), settings, packed=True)
    assert result.rates is not None
    assert result.lr == 1e-2
    assert [trial.outcome for trial in result.rates.tried] == ["chosen", "diverged", "diverged"]


def test_where_all_diverge_the_run_has_diverged():
    settings = replace(AUTO, lr=(1e29, 1e30), warmup=0.0)
    result = fit(adapted("gpt2", rank=8), encoded(), settings, packed=True)
    assert result.rates is not None
    assert "every rate that was tried diverged" in result.rates.reason
    assert (result.lr, result.diverged) == (1e29, True)


def test_a_rate_far_behind_is_given_up_before_its_head_is_over():
    settings = replace(AUTO, steps=400, lr=(1e-2, 1e3), warmup=0.0)
    result = fit(adapted("gpt2", rank=8), encoded(), settings, packed=True)
    assert result.rates is not None
    steps = {trial.rate: trial.steps for trial in result.rates.tried}
    assert steps[1e-2] == result.rates.head
    assert steps[1e3] < result.rates.head
    assert result.lr == 1e-2


def test_short_runs_take_the_rate_of_their_width():
    result = fit(adapted(), encoded(), replace(AUTO, steps=8), packed=True)
    assert result.rates is None
    assert result.lr == default_rate(width=48, batch_size=4).rate


def test_too_short_for_a_list_is_said_with_a_length_that_does():
    settings = replace(AUTO, lr=(0.01, 0.02), steps=20)
    with pytest.raises(SettingsError, match="lr=0.01, or a run of at least 50 steps".replace(".", r"\.")):
        fit(adapted(), encoded(), settings, packed=True)
    assert isinstance(rate_search(settings, width=48, steps=50), RateSearch)


@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.07])
@pytest.mark.parametrize("steps", [50, 100, 200, 1000, 20000])
def test_a_search_costs_what_it_may(steps, warmup):
    budget = SearchBudget.of(Settings(warmup=warmup), steps)
    if budget is not None:
        assert budget.warm < budget.head < budget.most <= steps / 10
    else:
        assert max(4, math.ceil(warmup * steps) + 2) >= steps // 10


def test_ties_are_no_defeat_and_one_bad_step_is_none():
    base = [5.0, 4.0, 3.5, 3.2, 3.1]
    assert not worse(base, base)
    assert not worse([5.0, 4.0, 3.5, 3.9, 3.0], base)
    assert worse([loss + 0.3 for loss in base], base)


class Early(RunHook):
    """Says that it changes what is trained."""

    name = "early"

    def __init__(self, at):
        self.at = at

    def first_change(self, steps):
        return self.at


def test_what_changes_before_the_rate_is_decided_is_refused():
    with pytest.raises(SettingsError, match="head=5"):
        fit(adapted(), encoded(), AUTO, hooks=[Early(4)], packed=True)
    assert fit(adapted(), encoded(), AUTO, hooks=[Early(5)], packed=True).rates is not None
