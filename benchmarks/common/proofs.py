"""Proof of equal work: a pass that is faster because it computes less would show here."""

from __future__ import annotations

import torch

from benchmarks.common.bases import adapted
from benchmarks.peers.trainer import batch_of, row_of
from loratlas.adapters.layers.lean_lora import lean
from loratlas.data.examples import Encoded
from loratlas.training.step.gradients import step_loss
from loratlas.training.step.microbatches import microbatches

GRADIENTS = 1e-4
"""Largest ‖ours − PEFT's‖ / ‖PEFT's‖ over all adapter gradients in float32 that rounding explains."""

LOSSES = 0.05
"""Largest difference of held-out losses, nats per token, that another order of rows and bfloat16 explain."""


def gradients(name: str, data: Encoded, *, placement: str = "all:8", rows: int = 8) -> float:
    """‖ours − PEFT's‖ / ‖PEFT's‖ of all adapter gradients of one step in float32, padded there and packed here.

    B is drawn at random, so that A has a gradient as well.

    Args:
        name: of the base.
        data: encoded rows.
        placement: of the adapters.
        rows: the first so many make up the step.
    """
    model = adapted(name, "float32", placement=placement)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if ".lora_B." in parameter_name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)

    def taken() -> torch.Tensor:
        listed = [p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]
        model.zero_grad(set_to_none=True)
        return torch.cat(listed)

    model.train()
    model(**batch_of([row_of(e) for e in data.examples[:rows]], data.pad_id)).loss.backward()
    theirs = taken()
    with lean(model):
        batches = list(microbatches(data, range(rows), packed=True))
        labelled = sum(batch.labelled for batch in batches)
        for batch in batches:
            (step_loss(model, batch) / labelled).backward()
    return float((taken() - theirs).norm() / theirs.norm())


def faults(difference: float, about: str) -> list[str]:
    """What `gradients` says against a measurement, in words."""
    return [] if difference <= GRADIENTS else [f"{about}: gradients differ by {difference:.1e}"]
