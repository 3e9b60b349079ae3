"""The one place where a model and a batch become a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loratlas.evaluation.token_losses import token_losses

if TYPE_CHECKING:
    import torch

    from loratlas.data.batching import Batch


def step_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Summed negative log-likelihood, in nats, of the counted tokens of a batch:

        L = Σ_t −log p(target_t | tokens before it, in its own example)

    Logits exist at the counted places only, some at a time; the logarithm is taken in float32 whatever the model's
    numbers.
    It is a sum and not a mean, so that sums over micro-batches add up to the step's (law 0); who calls it divides
    once by the number of counted tokens of the whole step.

    Args:
        model: bare or as a `PeftModel`; of a class that does the batch's task. Of a classifier, what is counted is one
            label a row.
        batch: packed or padded, on the model's device.

    Returns:
        A float32 scalar with its graph.

    Example:
        ``(step_loss(model, batch) / batch.labelled).backward()``
    """
    losses = token_losses(model, batch)
    return losses.double().sum().to(losses.dtype)
