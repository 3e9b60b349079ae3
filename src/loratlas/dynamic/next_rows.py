"""The rows that a decision looks at: those of the run's next step, which it has not been updated by yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from loratlas.anatomy.sites import Site
from loratlas.dynamic.attention_watch import AttentionSeen, attention_seen, check_attention
from loratlas.modeling import device_of, modes_kept
from loratlas.training.run_hooks import HookedRun

if TYPE_CHECKING:
    from loratlas.data.batches.batch import Batch


class ProbedRows(Protocol):
    """Rows of a run, for passes that change nothing."""

    def loss(self) -> float:
        """Their mean loss now."""
        ...

    def attention(self, sites: Sequence[Site]) -> AttentionSeen | None:
        """How far the run has moved the base's attention on them, by site, and how spread its heads are."""
        ...

    def check_attention(self) -> None:
        """Refuse a model whose attention patterns cannot be seen."""
        ...


class NextRows:
    """The rows of the step after so many.

    Args:
        run: that trains. step: steps done.
    """

    def __init__(self, run: HookedRun, step: int) -> None:
        from loratlas.training.step.microbatches import microbatches

        self._model, device = run.model, device_of(run.model)
        rows = run.order[step].tolist()
        self._batches: list[Batch] = [
            batch.to(device)
            for batch in microbatches(run.data, rows, packed=run.packed, size=run.settings.micro_batch)
        ]

    def loss(self) -> float:
        """Nats per counted token."""
        import torch

        from loratlas.evaluation.token_losses import token_losses

        with torch.no_grad(), modes_kept(self._model):
            self._model.eval()
            total = sum(
                float(token_losses(self._model, batch).sum(dtype=torch.float64)) for batch in self._batches
            )
        return total / sum(batch.labelled for batch in self._batches)

    def attention(self, sites: Sequence[Site]) -> AttentionSeen | None:
        """See `loratlas.dynamic.attention_watch.attention_seen`."""
        return attention_seen(self._model, self._batches, sites)

    def check_attention(self) -> None:
        """See `loratlas.dynamic.attention_watch.check_attention`."""
        check_attention(self._model, self._batches[0])
