"""Bases in FP8 and MXFP4: mapped, planned, adapted, trained and merged as the numbers that they stand for."""

from __future__ import annotations

import json

import pytest
import torch
from tests.models.quantised_bases import save_fp8, save_mxfp4
from tests.training.small import encoded, weights

from loratlas.adapters.stored.adapter_files import save_adapter
from loratlas.adapters.stored.load_adapter import load_adapter
from loratlas.errors import ModelError
from loratlas.models.load import load_model
from loratlas.placement.plan import place
from loratlas.sources import named_base, read
from loratlas.training.loop import fit
from loratlas.training.settings import Settings

KINDS = {"fp8": (save_fp8, "q,v:2 + ffn.down:3"), "mxfp4": (save_mxfp4, "attention:2 + moe.down:2")}
IDS = torch.arange(3, 19)[None]


@pytest.fixture(scope="module", params=KINDS)
def base(request, tmp_path_factory):
    """A folder, the model that it stands for, and a placement."""
    save, placement = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param) / "base"
    return folder, save(folder), placement


def test_it_is_mapped_and_planned_as_the_base_that_it_was_made_from(base):
    folder, plain, placement = base
    stored, whole = read(str(folder)), read(plain)
    assert stored.parameters == whole.parameters
    assert [(s.path, s.role, s.shape) for s in stored.sites] == [
        (s.path, s.role, s.shape) for s in whole.sites
    ]
    assert place(stored, placement).digest == place(whole, placement).digest


def test_its_numbers_are_exact_and_plain(base):
    folder, plain, _ = base
    model = load_model(folder, dtype="float32")
    for name, parameter in plain.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter), name
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.dtype for p in load_model(folder, dtype="bfloat16").parameters()} == {torch.bfloat16}
    assert {p.dtype for p in load_model(folder).parameters()} == {torch.bfloat16}
    assert getattr(model.config, "quantization_config", None) is None


@pytest.mark.filterwarnings("ignore::UserWarning")  # that stacks of experts run PEFT's own pass
def test_adapters_train_on_it_and_fit_the_base_that_it_stands_for(base, tmp_path):
    folder, plain, placement = base
    plan = place(read(str(folder)), placement)
    settings = Settings(steps=4, lr=1e-2, batch_size=4, dtype="float32")
    model = plan.attach(load_model(folder, dtype="float32"), seed=1)
    result = fit(model, encoded(8), settings)
    assert result.curve[-1].nll < result.curve[0].nll
    assert all(value.abs().sum() > 0 for value in weights(model).values())
    save_adapter(model, tmp_path / "adapter", plan_json=plan.to_json())
    with torch.no_grad():
        wanted = model.eval()(IDS).logits
        loaded = load_adapter(plain, tmp_path / "adapter")
        torch.testing.assert_close(loaded(IDS).logits, wanted, rtol=1e-4, atol=1e-4)
        merged = load_adapter(load_model(folder, dtype="float32"), tmp_path / "adapter").merge_and_unload()
        torch.testing.assert_close(merged(IDS).logits, wanted, rtol=1e-4, atol=1e-4)


def test_it_is_said_how_it_is_read(base):
    folder, *_ = base
    note = named_base(str(folder)).note
    assert note is not None
    assert "plain numbers" in note
    assert ("FP8" in note) != ("MXFP4" in note)


def test_four_bits_of_few_bits_are_refused(base):
    folder, *_ = base
    with pytest.raises(ModelError, match=r"stored in (FP8|MXFP4) already.*no quantize"):
        load_model(folder, quantize="4bit")


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors", "hqq", "eetq"])
def test_what_needs_a_package_that_is_not_here_says_which(tmp_path, method):
    folder = tmp_path / "base"
    save_fp8(folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 16}
    (folder / "config.json").write_text(json.dumps(config))
    assert len(read(str(folder)).sites) == 23
    with pytest.raises(ModelError) as refused:
        load_model(folder, dtype="float32")
    assert refused.value.given == str(folder)
    assert "Instead:" in str(refused.value)
    print(refused.value)
