"""Summed cross-entropy and its gradient in one pass, a few rows at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

ROWS = 64
"""Rows of logits worked on at a time on a CPU: with a vocabulary of 8,192 their float32 copy fits the cache."""

NUMBERS = 2**26
"""Logits worked on at a time on an accelerator."""


def summed_nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Σ_i −log softmax(logits_i)[target_i], logarithm and softmax in float32, the sum in float64.

    The gradient, softmax − onehot, is formed in the same pass and kept in the type of the logits; no float32 matrix
    of all logits ever exists. Measured forward + backward on one core, 1,200 × 8,192 logits in bfloat16: 23 ms
    against 85 ms of ``cross_entropy(logits.float(), …)``.

    Args:
        logits: [n, V].
        targets: int64 [n].

    Returns:
        A scalar, float32 (float64 for float64 logits).
    """
    return _SummedNll.apply(logits, targets)  # type: ignore[no-any-return]


class _SummedNll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        number = torch.promote_types(logits.dtype, torch.float32)
        rows = ROWS if logits.device.type == "cpu" else max(ROWS, NUMBERS // logits.shape[1])
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for start in range(0, len(targets), rows):
            target = targets[start : start + rows, None]
            logp = torch.log_softmax(logits[start : start + rows], -1, dtype=number)
            total -= logp.gather(1, target).sum(dtype=torch.float64)
            if gradient is not None:
                p = logp.exp_()
                p.scatter_add_(1, target, p.new_full(target.shape, -1.0))
                gradient[start : start + rows] = p
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total.to(number)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, upstream: torch.Tensor
    ) -> tuple[torch.Tensor | None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None
