"""Adapters that begin along their inputs: the directions are the inputs' own, and nothing else about a run changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.tiny import tiny_model
from tests.training.fleets import equals_its_runs_alone
from tests.training.small import adapted, encoded, weights

from loratlas.adapters.peft_targets import adapted as layers_of
from loratlas.adapters.trained_heads import detach_adapters
from loratlas.data.batches.batching import collate, training_order
from loratlas.errors import Interrupted, SettingsError
from loratlas.evaluation.token_losses import token_losses
from loratlas.placement.plan import place
from loratlas.training.fleet.members import Member
from loratlas.training.input_start import LEAST_SPREAD, _spread, begin_along_inputs
from loratlas.training.loop import fit
from loratlas.training.settings import Settings

SETTINGS = Settings(steps=40, batch_size=4, lr=1e-2, dtype="float32", compile="off", init="eva")


def new(kind: str = "llama", **options):
    """A model whose adapters are 0."""
    model = adapted(kind, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.zero_()
    return model


def inputs(model, data, settings, rows, *, packed):
    """Layer → everything that it reads at the counted positions of these rows, gathered plainly."""
    order = training_order(len(data), steps=40, batch_size=settings.batch_size, seed=settings.seed).reshape(
        -1
    )
    batch = collate([data.examples[i] for i in order[:rows]], packed=packed, pad_id=data.pad_id)
    seen = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, given, name=name: seen.update({name: given[0].flatten(0, -2)[batch.where].double()})
        )
        for name, layer in layers_of(model).items()
    ]
    with torch.no_grad():
        token_losses(model.eval(), batch)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("packed", [True, False])
def test_factors_hold_most_of_what_any_of_their_rank_could(kind, packed):
    model, data = new(kind), encoded(40)
    drawn = weights(model)
    assert begin_along_inputs(model, data, SETTINGS, packed=packed, steps=40) == 8
    seen = inputs(model, data, SETTINGS, 8, packed=packed)
    for name, layer in layers_of(model).items():
        A = layer.lora_A["default"].weight.detach().double()
        assert torch.allclose(A @ A.t(), torch.eye(len(A), dtype=torch.float64), atol=1e-5)
        assert not layer.lora_B["default"].weight.any()
        energies = torch.linalg.eigvalsh(seen[name].t() @ seen[name]).flip(0)
        kept = (seen[name] @ A.t()).square().sum()
        assert kept > 0.9 * energies[: len(A)].sum()  # of random tokens, whose energies hardly fall
    assert not any(torch.equal(drawn[name], now) for name, now in weights(model).items() if "lora_A" in name)


def test_the_model_still_says_what_its_base_says():
    model, data = new(), encoded(40)
    batch = collate(data.examples[:4], packed=False, pad_id=0)
    with torch.no_grad():
        before = token_losses(model.eval(), batch)
        begin_along_inputs(model.train(), data, SETTINGS, packed=True, steps=40)
        assert model.training
        assert torch.equal(token_losses(model.eval(), batch), before)
    assert all(p.requires_grad for name, p in model.named_parameters() if ".lora_" in name)


def test_few_positions_leave_the_other_rows_as_they_were_drawn():
    model, data = new(rank=16), encoded(8, longest=3)
    drawn = weights(model)
    begin_along_inputs(model, data, replace(SETTINGS, subset=2, batch_size=1), packed=True, steps=2)
    name = next(name for name in drawn if "lora_A" in name)
    same = [torch.equal(a, b) for a, b in zip(weights(model)[name], drawn[name], strict=True)]
    assert same[-1]
    assert not same[0]


def test_a_run_begins_so_and_a_resumed_one_goes_on(tmp_path):
    whole = new()
    reference = fit(whole, encoded(40), SETTINGS, packed=True)
    other = new()
    plain = fit(other, encoded(40), replace(SETTINGS, init=True), packed=True)
    assert reference.train_nll != plain.train_nll

    def stop(event):
        if event.step == 9:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        fit(new(), encoded(40), SETTINGS, out=tmp_path, on_step=stop, packed=True)
    resumed = new()
    result = fit(resumed, encoded(40), SETTINGS, out=tmp_path, resume=True, packed=True)
    assert result.train_nll == reference.train_nll
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())


def test_an_adapter_that_was_trained_is_refused():
    with pytest.raises(SettingsError, match="trained already"):
        fit(adapted(), encoded(40), SETTINGS, packed=True)


def test_runs_of_a_fleet_begin_as_they_do_alone():
    base = tiny_model("llama")
    rows = place(base, "q,v,ffn:2").rows
    settings = [replace(SETTINGS, steps=5, seed=n, init=init) for n, init in enumerate(("auto", None))]
    fleet = equals_its_runs_alone(
        base, encoded(12), [Member(rows=rows, settings=own) for own in settings], packed=True
    )
    for index, begun in enumerate((True, False)):
        A = next(value for name, value in weights(fleet.peft_model(index)).items() if "lora_A" in name)
        detach_adapters(fleet.model)
        length = float(A.norm(dim=1).mean())
        assert (length > 0.9) == begun  # rows of length 1, of which Kaiming's are 0.58


def begun(init, model=None, **more):
    """(result, weights) of a run on 40 rows."""
    model = new() if model is None else model
    result = fit(model, encoded(40), replace(SETTINGS, init=init, steps=6, **more), packed=True)
    return result, weights(model)


def drowned():
    """A model in which one channel of the residual stream drowns all others, as pretrained bases have them."""
    model = new()
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] = 100.0
    return model


def equal(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_run_that_decides_begins_along_inputs_that_are_spread_and_as_peft_does_otherwise():
    result, trained = begun("auto")
    assert result.start is not None
    assert result.start.init == "eva"
    assert LEAST_SPREAD < result.start.spread <= 1
    assert equal(trained, begun("eva")[1])
    assert not equal(trained, begun(True)[1])
    assert "adapters begin along their inputs" in result.start.sentence()
    result, trained = begun("auto", drowned())
    assert result.start is not None
    assert result.start.init is True
    assert result.start.spread < LEAST_SPREAD
    assert equal(trained, begun(True, drowned())[1])
    assert "begin as PEFT begins them" in result.start.sentence()


def test_a_start_that_was_asked_for_is_no_decision():
    assert [begun(init)[0].start for init in (True, "eva", None)] == [None] * 3


def test_the_spread_of_a_direction_counts_its_channels():
    even, alone = torch.full((2, 8), 0.25), torch.eye(8)[:2]
    assert _spread(even) == pytest.approx(1.0)
    assert _spread(alone) == pytest.approx(1 / 8)
    two = torch.tensor([[1.0, 1.0, 0, 0]])
    assert _spread(two) == pytest.approx(2 / 4)


def test_a_run_that_decided_and_was_killed_goes_on(tmp_path):
    settings = replace(SETTINGS, init="auto")
    whole, resumed = new(), new()
    reference = fit(whole, encoded(40), settings, packed=True)

    def stop(event):
        if event.step == 9:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        fit(new(), encoded(40), settings, out=tmp_path, on_step=stop, packed=True)
    result = fit(resumed, encoded(40), settings, out=tmp_path, resume=True, packed=True)
    assert (result.start, result.train_nll) == (reference.start, reference.train_nll)
    assert equal(weights(whole), weights(resumed))
