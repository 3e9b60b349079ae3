"""What is measured of a token besides its loss: the average over the vocabulary, and how exact the loss is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from loratlas.evaluation.token_losses import logit_rows, token_losses

if TYPE_CHECKING:
    from loratlas.data.batches.batching import Batch

UNIT = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24, torch.float64: 2.0**-53}
"""Largest relative change of a number that is rounded to a type."""

LANES = 8
"""A sum over the vocabulary is kept in at least so many partial sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStatistics:
    """Of every counted position of a batch, float32 [n] on the model's device.

    Args:
        nll: −log p of the target, nats.
        uniform: −log p averaged over the vocabulary; None: not measured.
        error: how far ``nll`` may be from that of logits that were not rounded; None: not measured.
    """

    nll: torch.Tensor
    uniform: torch.Tensor | None
    error: torch.Tensor | None


@torch.no_grad()
def token_statistics(
    model: Any, batch: Batch, *, uniform: bool = False, bounds: bool = False
) -> TokenStatistics:
    """One pass: `loratlas.evaluation.token_losses.token_losses` and what belongs to it.

    Args:
        model: bare or as a `PeftModel`.
        batch: packed or padded, on the model's device.
        uniform: measure ū.
        bounds: measure the error bound.
    """
    if not (uniform or bounds):
        return TokenStatistics(nll=token_losses(model, batch), uniform=None, error=None)
    answers = batch.answers
    n = len(answers)
    values = {
        name: torch.empty(n, dtype=torch.float32, device=answers.device)
        for name, wanted in (("nll", True), ("uniform", uniform), ("error", bounds))
        if wanted
    }
    for rows, logits, roundings in logit_rows(model, batch):
        targets = answers[rows, None]
        logp = torch.log_softmax(logits, -1, dtype=torch.float32)
        values["nll"][rows] = -logp.gather(1, targets)[:, 0]
        if uniform:
            values["uniform"][rows] = -logp.mean(1)
        if bounds:
            unit = UNIT[logits.dtype]
            values["error"][rows] = error_bound(logits.float(), targets, unit, roundings, values["nll"][rows])
    return TokenStatistics(nll=values["nll"], uniform=values.get("uniform"), error=values.get("error"))


def error_bound(
    z: torch.Tensor, targets: torch.Tensor, unit: float, roundings: int, nll: torch.Tensor
) -> torch.Tensor:
    """How far −log p of rounded logits may be from that of the logits before rounding.

    A logit z̃ that was rounded k times came from some z with |z̃ − z| ≤ e = η/(1 − η)·|z̃|, η = (1 + unit)^k − 1. Over
    all such z, −log p_t = log Σ_j exp(z_j − z_t) is largest where every z_j is z̃_j + e_j and z_t is z̃_t − e_t, and by
    convexity it can fall by no more than it can rise:

        error = log(Σ_{j≠t} exp(z̃_j + e_j) + exp(z̃_t − e_t)) − (z̃_t − e_t) − nll

    and what float32 adds to the logarithm of the softmax itself. The rounding of what the output embedding reads is
    not in it: that is the model's own precision.

    Args:
        z: [n, V], float32.
        targets: int64 [n, 1].
        unit: relative rounding of the type that the logits were made in.
        roundings: k.
        nll: [n].

    Returns:
        [n], nats.

    >>> z = torch.tensor([[2.0, 0.0]])
    >>> float(error_bound(z, torch.tensor([[0]]), 2.0**-8, 1, torch.tensor([0.1269]))) < 0.002
    True
    """
    eta = (1 + unit) ** roundings - 1
    slack = eta / (1 - eta)
    largest = z.abs().amax(1)
    arithmetic = 2.0**-24 * (8 * (largest + nll.abs() + 1) + z.shape[1] / LANES)
    low = z.gather(1, targets)
    low = low - slack * low.abs()
    high = torch.add(z, z.abs(), alpha=slack).scatter_(1, targets, low)
    # What float32 loses on the way to the bound is as small as what it loses on the way to the loss.
    return (torch.logsumexp(high, 1) - low[:, 0] - nll).clamp_min_(0) + 2 * arithmetic
