"""Descents: what steps did to the loss, taken from a run as it goes."""

from __future__ import annotations

import pytest
from tests.tiny import tiny_model
from tests.training.small import adapted, encoded

from loratlas.adapters.attach import attach
from loratlas.adapters.trained_heads import detach_adapters
from loratlas.anatomy.read import read
from loratlas.placement.plan import place
from loratlas.training.fleet.train_fleet import Fleet, Member
from loratlas.training.loop import fit
from loratlas.training.loss_change import LossChangeAllocation
from loratlas.training.run_hooks import RunHook
from loratlas.training.settings import Settings

SETTINGS = Settings(steps=6, lr=1e-2, batch_size=4, dtype="float32")


class Watch(RunHook):
    """Everything that a run shows, kept."""

    name = "watch"

    def __init__(self):
        self.weights, self.gradients = [], []

    def on_gradient(self, run):
        (group,) = run.masters.groups
        self.names = group.names
        self.weights.append([view.clone() for view in group.views])
        self.gradients.append([gradient.clone() for gradient in group.gradients])


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("clip", [None, 1e-3])
def test_a_descent_is_each_step_against_the_slope_behind_it(after, clip):
    watch, descent = Watch(), LossChangeAllocation(after=after)
    settings = Settings(**SETTINGS.to_json() | {"clip": clip})

    fit(adapted(), encoded(12), settings, hooks=[watch, descent])
    expected = dict.fromkeys(watch.names, 0.0)
    for step in range(max(after, 1), 6):
        for place_, name in enumerate(watch.names):
            moved = watch.weights[step][place_] - watch.weights[step - 1][place_]
            # The slope is the loss's own: clipping is the optimiser's affair.
            expected[name] -= float((watch.gradients[step][place_].double() * moved.double()).sum())
    assert descent.steps == 6
    assert descent.values() == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert any(value > 0 for value in expected.values())


def test_descents_of_small_steps_are_the_fall_of_the_loss():
    """Rows that do not change, a rate that is small: slopes at the ends of steps add up to what was gained."""
    descent, curve = LossChangeAllocation(), []
    settings = Settings(steps=30, lr=1e-3, batch_size=4, schedule="constant", warmup=0.0, dtype="float32")
    fit(
        adapted(),
        encoded(4),
        settings,
        hooks=[descent],
        on_step=lambda event: curve.append(event.nll),
    )
    fell = curve[0] - curve[-1]
    assert fell > 0.01
    assert sum(descent.values().values()) == pytest.approx(fell, rel=0.1)


def test_a_fleet_shows_each_run_its_own_masters():
    base = tiny_model("llama")
    rows = place(read(base.config), "all:2").rows
    descents = [LossChangeAllocation(after=2), LossChangeAllocation(after=2)]
    members = [
        Member(rows=rows, settings=Settings(**SETTINGS.to_json() | {"seed": seed}), hooks=[descent])
        for seed, descent in enumerate(descents)
    ]
    Fleet(base, encoded(12), members, packed=True).fit()
    for number, member in enumerate(members):
        own = LossChangeAllocation(after=2)
        model = attach(member.rows, base, seed=member.settings.seed)
        fit(model, encoded(12), member.settings, packed=True, hooks=[own])
        detach_adapters(model)
        assert descents[number].values() == pytest.approx(own.values(), rel=1e-2, abs=1e-6)
    assert descents[0].values() != descents[1].values()


def test_nothing_is_told_before_the_first_step():
    assert LossChangeAllocation().values() == {}
