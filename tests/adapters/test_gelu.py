"""One kernel for a GELU that is written out: the same numbers, less kept."""

from __future__ import annotations

import pytest
import torch
from tests.training.small import adapted
from transformers.activations import FastGELUActivation, NewGELUActivation

from loratlas.adapters.layers.gelu import fuse
from loratlas.adapters.layers.lean_lora import faster, slower
from loratlas.cost.recorder import saved


@pytest.mark.parametrize("kind", [NewGELUActivation, FastGELUActivation])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-10), (torch.bfloat16, 2e-2)])
def test_value_and_gradient_are_those_of_the_formula(kind, dtype, allowed):
    torch.manual_seed(0)
    x = (3 * torch.randn(400)).to(dtype).requires_grad_()
    g = torch.randn(400).to(dtype)

    def both(module):
        with saved([x]) as found:
            y = module(x)
        (dx,) = torch.autograd.grad(y, x, g)
        return y.detach(), dx, sum(found.values())

    one = kind()
    written = both(one)
    fuse(one)
    fused = both(one)
    for ours, theirs in zip(fused[:2], written[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=allowed, atol=allowed)
    assert fused[2] == 0  # nothing but x itself
    assert written[2] > 0


def test_faster_brings_it_and_slower_takes_it_away():
    model = adapted("gpt2")
    kinds = [type(module) for module in model.modules()]
    assert NewGELUActivation in kinds
    faster(model)
    assert not any(type(module) is NewGELUActivation for module in model.modules())
    slower(model)
    assert [type(module) for module in model.modules()] == kinds
