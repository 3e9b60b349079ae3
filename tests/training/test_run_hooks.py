"""Hooks: what takes part in a run between its steps, changes what is trained, and goes on after a kill."""

from __future__ import annotations

import pytest
import torch
from tests.training.small import adapted, encoded, weights

from loratlas.adapters.adam_moments import Moments
from loratlas.adapters.peft_targets import adapted as adapted_layers
from loratlas.errors import Interrupted, OutputError, SettingsError
from loratlas.training.fleet.members import Member
from loratlas.training.fleet.train_fleet import Fleet
from loratlas.training.loop import fit
from loratlas.training.run_hooks import RunHook
from loratlas.training.settings import Settings

SETTINGS = Settings(steps=8, lr=1e-2, batch_size=4, dtype="float32", save_every=3, warmup=0.0)


class Halve(RunHook):
    """After some steps every adapter of the upper layer keeps the first half of its directions, with their moments."""

    name = "halve"

    def __init__(self, at: int = 4):
        self.at, self.done, self.norms = at, False, []

    def identity(self):
        return {"at": self.at}

    def on_gradient(self, run):
        self.norms.append(float(run.masters.norm()))

    def after_step(self, run, event):
        if event.step == self.at:
            self._halve(run)

    def _halve(self, run):
        moments = run.optimizer.moments()
        brought = {}

        def change():
            for path, layer in adapted_layers(run.model).items():
                if "layers.1" not in path:
                    continue
                for factors, rows in ((layer.lora_A, True), (layer.lora_B, False)):
                    old = factors["default"].weight
                    name = next(n for n, p in run.model.named_parameters() if p is old)
                    half = layer.r["default"] // 2

                    def cut(value, rows=rows, half=half):
                        return (value[:half] if rows else value[:, :half]).clone()

                    factors["default"].weight = torch.nn.Parameter(cut(old.detach()))
                    if name in moments:
                        brought[name] = Moments(
                            first=cut(moments[name].first), second=cut(moments[name].second)
                        )
                layer.r["default"] //= 2
            return brought

        run.change_parameters(change)
        self.done = True

    def state(self):
        return {"norms": torch.tensor(self.norms)}, {"done": self.done}

    def load_state(self, run, tensors, values):
        self.norms = tensors["norms"].tolist()
        if values["done"]:
            self._halve(run)


def test_parameters_change_within_a_run_and_a_killed_one_goes_on_bit_for_bit(tmp_path):
    whole, hook = adapted(), Halve()
    reference = fit(whole, encoded(20), SETTINGS, hooks=[hook], packed=True)
    shapes = {name: tuple(value.shape) for name, value in weights(whole).items()}
    assert {shape[0] for name, shape in shapes.items() if "layers.1" in name and "lora_A" in name} == {2}
    assert {shape[0] for name, shape in shapes.items() if "layers.0" in name and "lora_A" in name} == {4}
    for stop in (2, 4, 5, 7):
        out = tmp_path / str(stop)

        def interrupt(event, stop=stop):
            if event.step == stop:
                raise KeyboardInterrupt

        with pytest.raises(Interrupted):
            fit(adapted(), encoded(20), SETTINGS, hooks=[Halve()], out=out, on_step=interrupt, packed=True)
        resumed, other = adapted(), Halve()
        result = fit(resumed, encoded(20), SETTINGS, hooks=[other], out=out, resume=True, packed=True)
        assert [point.nll for point in result.curve] == [point.nll for point in reference.curve]
        assert other.norms == pytest.approx(hook.norms)
        kept = weights(resumed)
        assert all(torch.equal(value, kept[name]) for name, value in weights(whole).items())


def test_what_is_not_changed_keeps_weights_and_moments():
    """A change that changes nothing leaves a run as it is, to the bit."""

    class Touch(RunHook):
        name = "touch"

        def after_step(self, run, event):
            run.change_parameters(lambda: None)

    touched, plain = adapted(), adapted()
    settings = Settings(**SETTINGS.to_json() | {"loraplus": 4.0})
    fit(touched, encoded(20), settings, hooks=[Touch()], packed=True)
    fit(plain, encoded(20), settings, packed=True)
    kept = weights(touched)
    assert all(torch.equal(value, kept[name]) for name, value in weights(plain).items())


def test_a_hook_may_change_the_gradient_before_it_is_clipped():
    class Freeze(RunHook):
        name = "freeze"

        def on_gradient(self, run):
            for group in run.masters.groups:
                for name, gradient in zip(group.names, group.gradients, strict=True):
                    if "layers.1" in name:
                        gradient.zero_()

    model = adapted()
    before = weights(model)
    fit(model, encoded(20), SETTINGS, hooks=[Freeze()], packed=True)
    moved = {name: not torch.equal(value, before[name]) for name, value in weights(model).items()}
    assert not any(value for name, value in moved.items() if "layers.1" in name)
    assert all(value for name, value in moved.items() if "layers.0" in name)


def test_other_hooks_are_another_run(tmp_path):
    fit(adapted(), encoded(20), SETTINGS, hooks=[Halve()], out=tmp_path, packed=True)
    with pytest.raises(OutputError, match=r"hooks\.halve\.at was 4, now 5"):
        fit(adapted(), encoded(20), SETTINGS, hooks=[Halve(5)], out=tmp_path, resume=True, packed=True)
    with pytest.raises(OutputError, match=r"hooks\.halve\.at was 4, now none"):
        fit(adapted(), encoded(20), SETTINGS, out=tmp_path, resume=True, packed=True)
    with pytest.raises(SettingsError, match="two of one name"):
        fit(adapted(), encoded(20), SETTINGS, hooks=[Halve(), Halve()], packed=True)


def test_a_run_of_a_fleet_keeps_its_parameters():
    from tests.tiny import tiny_model

    from loratlas.anatomy.read import read
    from loratlas.placement.plan import place

    base = tiny_model("llama")
    rows = place(read(base.config), "all:4").rows
    members = [Member(rows=rows, settings=SETTINGS, hooks=[Halve(1)]), Member(rows=rows, settings=SETTINGS)]
    with pytest.raises(SettingsError, match="slots of a fleet's bank"):
        Fleet(base, encoded(12), members).fit()
