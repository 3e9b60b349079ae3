"""Losses of single tokens, with their gradient formed in the same pass, a few rows of logits at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

ROWS = 128
"""Rows of logits worked on at a time, at least: with fewer, reading the output embedding costs more than the rows."""

NUMBERS = {"cpu": 2**21}
"""Logits worked on at a time: on a CPU what its caches hold (float32: 8 MiB), elsewhere `OTHERS`."""

OTHERS = 2**26

FAINT = 1e-30
"""A target less probable than this has its logarithm taken from the logits: its probability may be rounded to 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a model does to its logits after the output embedding: c·tanh(s·x / c).

    Args:
        scale: s.
        softcap: c; None for no limit.
    """

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits that the model gives."""
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    @property
    def roundings(self) -> int:
        """How often a logit is rounded on its way from the linear layer; a softcap divides, bends and multiplies.

        Where tanh bends, it passes on no larger relative change than it gets: |x tanh′ x| ≤ |tanh x|.
        """
        return 1 + (self.scale != 1.0) + 3 * (self.softcap is not None)

    def slope(self, shaped: torch.Tensor) -> torch.Tensor | float:
        """Its derivative, s·(1 − (y / c)²), from the logits y that it gave."""
        return self.scale if self.softcap is None else self.scale * (1 - (shaped / self.softcap).square())


def nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """−log softmax(logits_i)[target_i], computed in float32 whatever the logits' type.

    The gradient, softmax − onehot, is kept in the type of the logits; no float32 matrix of all logits ever exists.

    Args:
        logits: [n, V].
        targets: int64 [n].

    Returns:
        [n], float32 (float64 for float64 logits).
    """
    return _FromLogits.apply(logits, targets)  # type: ignore[no-any-return]


def nll_of_states(
    states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    shape: Shape | None = None,
) -> torch.Tensor:
    """`nll` of the logits ``shape(states · weightᵀ + bias)``, which never exist as a whole.

    Some rows at a time, logits are made, turned into losses and into the gradient of the states, and forgotten:

        g_i = (softmax(y_i) − onehot_i) ∘ slope,  ∂L_i/∂states_i = g_i · weight

    so that the backward pass is one multiplication. The output embedding must be frozen: it gets no gradient.
    All rows share one piece of memory, and the loss is −log of the target's probability, so that the exponentials
    are taken once; what the target's probability lacks to 1 is −expm1(−loss), which does not cancel.
    Measured forward + backward on one core, 8,192 tokens of vocabulary, 256 channels: float32, 2,097 rows, 0.23 s
    against 0.57 s of logits as a whole; bfloat16, 853 rows, 27 ms, of which the two matrix products are 18.

    Args:
        states: [n, d], what the output embedding reads.
        weight: [V, d].
        bias: [V].
        targets: int64 [n].
        shape: what follows the output embedding.

    Returns:
        [n], float32 (float64 for float64 states).
    """
    return _FromStates.apply(states, weight, bias, targets, shape or Shape())  # type: ignore[no-any-return]


def rows_at_a_time(vocabulary: int, device: torch.device) -> int:
    """How many rows of logits are worked on together."""
    return max(ROWS, NUMBERS.get(device.type, OTHERS) // vocabulary)


class _FromLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        number = torch.promote_types(logits.dtype, torch.float32)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        losses = logits.new_empty(len(targets), dtype=number)
        rows = rows_at_a_time(logits.shape[1], logits.device)
        for start in range(0, len(targets), rows):
            here = slice(start, start + rows)
            losses[here], logp = _losses(logits[here], targets[here], number)
            if gradient is not None:
                gradient[here] = _error(logp, targets[here])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, upstream: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[:, None].to(gradient.dtype), None


class _FromStates(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        shape: Shape,
    ) -> torch.Tensor:
        number = torch.promote_types(states.dtype, torch.float32)
        gradient = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        losses = states.new_empty(len(targets), dtype=number)
        rows = min(rows_at_a_time(len(weight), states.device), max(1, len(targets)))
        room = states.new_empty(rows, len(weight))
        lifted = room if states.dtype == number else room.new_empty(room.shape, dtype=number)
        room_p = lifted.new_empty(lifted.shape)
        for start in range(0, len(targets), rows):
            here = slice(start, start + rows)
            n = len(targets[here])
            logits = _linear(states[here], weight, bias, room[:n])
            shaped = shape(logits)
            y = shaped if shaped.dtype == number else lifted[:n].copy_(shaped)
            p = torch.softmax(y, -1, out=room_p[:n])
            losses[here] = loss = _surprise(p, y, targets[here])
            if gradient is not None:
                p.scatter_(1, targets[here, None], torch.expm1(-loss)[:, None])
                slope = shape.slope(shaped)
                if not (isinstance(slope, float) and slope == 1.0):
                    p.mul_(slope)
                # The logits have served, unless the slope's own memory is theirs: it has been read by now.
                error = p if p.dtype == states.dtype else logits.copy_(p)
                torch.mm(error, weight, out=gradient[here])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, upstream: torch.Tensor
    ) -> tuple[torch.Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[:, None].to(gradient.dtype), None, None, None, None


def _linear(
    states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> torch.Tensor:
    if bias is None:
        return torch.mm(states, weight.t(), out=out)
    return torch.addmm(bias, states, weight.t(), out=out)


def _surprise(p: torch.Tensor, y: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """−log p of the targets [n], where p = softmax(y) [n, V]."""
    of_target = p.gather(1, targets[:, None])[:, 0]
    losses = -of_target.log()
    faint = of_target < FAINT
    if bool(faint.any()):
        rows = y[faint]
        losses[faint] = rows.logsumexp(-1) - rows.gather(1, targets[faint, None])[:, 0]
    return losses


def _losses(
    logits: torch.Tensor, targets: torch.Tensor, number: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """(losses [n], log-probabilities [n, V])."""
    logp = torch.log_softmax(logits, -1, dtype=number)
    return -logp.gather(1, targets[:, None])[:, 0], logp


def _error(logp: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """softmax − onehot, in the memory of the log-probabilities."""
    p = logp.exp_()
    return p.scatter_add_(1, targets[:, None], p.new_full((len(targets), 1), -1.0))
