"""RMS norms with a backward pass of their own: Llama's numbers, its gradients, and nobody else's class."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import tiny_model
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from loratlas.adapters.layers.gelu import fuse, write_out
from loratlas.adapters.layers.rms_norm import lean_norm


def norm(kind=LlamaRMSNorm, *, dtype=torch.float32, width=48):
    made = kind(width).to(dtype).requires_grad_(False)
    made.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    return made


def both(module, x, g):
    """(y, dx) of a module."""
    x = x.clone().requires_grad_()
    y = module(x)
    return y.detach(), torch.autograd.grad(y, x, g)[0]


@pytest.mark.parametrize(
    ("dtype", "apart"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-3), (torch.float64, 0)]
)
def test_numbers_and_gradients_are_those_written_out(dtype, apart):
    draw = torch.Generator().manual_seed(1)
    x, g = (torch.randn(2, 9, 48, generator=draw).to(dtype) for _ in range(2))
    own = norm(dtype=dtype)
    y, dx = both(own, 3 * x, g)
    own.__class__ = lean_norm(LlamaRMSNorm)
    lean_y, lean_dx = both(own, 3 * x, g)
    assert torch.equal(lean_y, y)
    assert float((lean_dx - dx).norm()) <= apart * float(dx.norm())


def test_less_is_kept():
    def kept(module):
        sizes = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel() * t.element_size()) or t, lambda t: t
        )
        with hooks:
            module(torch.ones(4, 48, dtype=torch.bfloat16, requires_grad=True))
        return sum(sizes)

    own = norm(dtype=torch.bfloat16)
    written = kept(own)
    own.__class__ = lean_norm(LlamaRMSNorm)
    assert kept(own) < written / 3


def test_a_norm_that_trains_keeps_its_own_backward_pass():
    own = norm()
    own.weight.requires_grad_()
    own.__class__ = lean_norm(LlamaRMSNorm)
    own(torch.randn(3, 48)).sum().backward()
    assert own.weight.grad is not None


def test_classes_are_told_by_their_code():
    assert lean_norm(Qwen3RMSNorm) is not None
    assert lean_norm(Gemma2RMSNorm) is None  # 1 + w
    assert lean_norm(torch.nn.RMSNorm) is None
    assert lean_norm(lean_norm(LlamaRMSNorm)) is None


def test_a_model_is_given_back_as_it_was():
    model = tiny_model("qwen3")
    before = [type(module) for module in model.modules()]
    fuse(model)
    assert sum("_written_out" in vars(type(module)) for module in model.modules()) == 4 * 3 + 1
    write_out(model)
    assert [type(module) for module in model.modules()] == before
