"""Law 2: growing a rank changes no factor, scale or output; shrinking gives the closest adapter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from tests.training.small import adapted, tiny_model

from loratlas.adapters.layers.lean_lora import faster
from loratlas.adapters.peft_targets import adapted as layers_of
from loratlas.adapters.resize import resize

TOKENS = torch.arange(3, 35)[None]


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(["llama", "gpt2"]),
    lean=st.booleans(),
    more=st.lists(st.integers(0, 6), min_size=4, max_size=4),
)
def test_growing_changes_no_output(kind, lean, more):
    model = adapted(kind)
    if lean:
        faster(model)
    before, layers = logits(model), layers_of(model)
    kept = {
        name: (
            layer.lora_A["default"].weight.detach().clone(),
            layer.lora_B["default"].weight.detach().clone(),
        )
        for name, layer in layers.items()
    }
    scales = {name: layer.scaling["default"] for name, layer in layers.items()}
    wanted = {name: 4 + extra for name, extra in zip(layers, more, strict=False)}
    resize(model, wanted)
    for name, layer in layers_of(model).items():
        A, B, rank = layer.lora_A["default"].weight, layer.lora_B["default"].weight, wanted.get(name, 4)
        assert A.shape[0] == B.shape[1] == layer.r["default"] == rank
        assert torch.equal(A[:4], kept[name][0])
        assert torch.equal(B[:, :4], kept[name][1])
        assert not B[:, 4:].any()
        assert not rank > 4 or A[4:].any()
        assert layer.scaling["default"] == scales[name]
    after = logits(model)
    assert float((after - before).norm() / before.norm()) <= 1e-6


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(kind=st.sampled_from(["llama", "gpt2"]), rank=st.integers(1, 3), seed=st.integers(0, 99))
def test_shrinking_gives_the_closest(kind, rank, seed):
    """Eckart and Young: what is left out is exactly what lies beyond the first singular values; factors balanced."""
    model = adapted(kind, seed=seed)
    before = {name: product(layer) for name, layer in layers_of(model).items()}
    some = list(before)[:: 1 + seed % 3]
    resized = resize(model, dict.fromkeys(some, rank))
    lost = {change.module: change.lost for change in resized.changes}
    for name in some:
        layer = layers_of(model)[name]
        sigma = torch.linalg.svdvals(before[name])
        gone = (product(layer) - before[name]).norm()
        assert float(gone) == pytest.approx(float(sigma[rank:].norm()), rel=1e-4)
        assert lost[name] == pytest.approx(
            float(sigma[rank:].square().sum() / sigma.square().sum()), rel=1e-4
        )
        A, B = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
        torch.testing.assert_close(A @ A.t(), B.t() @ B, rtol=1e-3, atol=1e-6)


def product(layer):
    A, B = layer.lora_A["default"].weight.detach().double(), layer.lora_B["default"].weight.detach().double()
    return layer.scaling["default"] * (B @ A)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(["llama", "gpt2"]),
    ranks=st.lists(st.sampled_from([0, 1, 3, 4, 6]), min_size=9, max_size=9).filter(any),
)
def test_any_ranks_are_an_ordinary_adapter(tmp_path_factory, kind, ranks):
    model = adapted(kind)
    resize(model, dict(zip(layers_of(model), ranks, strict=False)))
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    other = PeftModel.from_pretrained(tiny_model(kind), folder)
    assert torch.equal(logits(other), logits(model))
    assert {n: layer.r for n, layer in layers_of(other).items()} == {
        n: layer.r for n, layer in layers_of(model).items()
    }
