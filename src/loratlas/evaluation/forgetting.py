"""What an adapter costs on rows that it was not trained for: the loss with it, without it, and the difference."""

from __future__ import annotations

from typing import Any

from loratlas.data.examples import Encoded
from loratlas.evaluation.class_losses import classify
from loratlas.evaluation.score import Scores, score


def loss_record(scores: Scores) -> dict[str, Any]:
    """A loss as a record keeps it: ``nll`` (nats per token), ``tokens``, ``rows``."""
    return {"nll": scores.token_mean_nll, "tokens": int(scores.n.sum()), "rows": len(scores.n)}


def measure_forgetting(model: Any, encoded: Encoded, *, packed: bool) -> dict[str, Any]:
    """Loss with and without the adapter; positive ``difference``: the adapter lost something.

        difference = L(base + adapter) − L(base)        token means, nats

    Args:
        model: a `PeftModel`; left as it was.
        encoded: rows of another kind than those trained on.
        packed: see `loratlas.evaluation.score.score`.

    Returns:
        ``nll``, ``base_nll``, ``difference``, ``tokens``, ``rows``.

    Raises:
        DataError: no rows.
    """

    def scores() -> Scores:
        return (
            classify(model, encoded).scores if encoded.task.labels else score(model, encoded, packed=packed)
        )

    record = loss_record(scores())
    with model.disable_adapter():
        base = scores().token_mean_nll
    return {**record, "base_nll": base, "difference": record["nll"] - base}
