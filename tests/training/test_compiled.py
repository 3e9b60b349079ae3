"""Compiled layers train to the same losses, one code serves all layers, and everything is put back."""

from __future__ import annotations

import pytest
import torch
from tests.training.small import adapted, encoded
from tests.training.test_prefix import top

from loratlas.errors import SettingsError
from loratlas.training import compiled
from loratlas.training.fleet import Member, why_alone
from loratlas.training.loop import fit
from loratlas.training.prefix import layers_of
from loratlas.training.settings import Settings

FAST = {"steps": 4, "lr": 1e-2, "batch_size": 4, "dtype": "float32"}


@pytest.fixture(autouse=True)
def traced_only(monkeypatch):
    """The whole way but the C++ compiler, which takes half a minute."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch.compiler.reset()


def test_losses_are_those_of_layers_that_are_not_compiled():
    """Two adapted layers above one whose states are kept; evaluated meanwhile, which is not compiled."""
    data = encoded(9)

    def trained(**changes):
        model = top("llama", "all@last2:4")
        return model, fit(model, data, Settings(**FAST, **changes), evaluate=data, packed=True)

    _, reference = trained()
    torch._dynamo.utils.counters.clear()
    model, result = trained(compile="on", evaluate_every=2)
    assert result.kept_layers == 1
    assert (
        0 < torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 7
    )  # four pieces, with and without gradient
    for one, two in zip(result.curve, reference.curve, strict=True):
        assert one.nll == pytest.approx(two.nll, rel=1e-5)
    assert not any("_compiled_call_impl" in vars(layer) for layer in layers_of(model).modules)


def test_what_cannot_be_compiled_is_said(monkeypatch):
    data, wanted = encoded(9), {**FAST, "compile": "on"}
    with pytest.raises(SettingsError, match="compute again"):
        fit(adapted(), data, Settings(**wanted, checkpointing=True))
    with pytest.raises(SettingsError, match="unknown choice"):
        Settings(compile="perhaps")
    assert "compiled" in why_alone(adapted(), Member(rows=(), settings=Settings(**wanted)))
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/nowhere/g++",))
    with pytest.raises(SettingsError, match="no C"):
        fit(adapted(), data, Settings(**wanted))
