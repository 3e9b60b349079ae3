"""Early stopping: the loss on rows that are not trained on decides when it is enough."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loratlas.training.master_weights import MasterWeights
from loratlas.training.settings import Settings

if TYPE_CHECKING:
    import torch


class EarlyStopping:
    """Counts evaluations without a lower loss, and keeps the adapter of the lowest one.

    Args:
        settings: ``early_stop`` (None: never stop) and ``evaluate_every``.
        steps: of the whole run.
    """

    def __init__(self, settings: Settings, *, steps: int) -> None:
        self._limit = settings.early_stop
        self._every = settings.evaluate_every
        if self._every is None and self._limit is not None:
            self._every = max(1, steps // 10)
        self.last: float | None = None
        self.lowest: float | None = None
        self.waited = 0
        self.best: list[torch.Tensor] = []

    def due(self, done: int) -> bool:
        """Whether to evaluate after so many steps."""
        return self._every is not None and done % self._every == 0

    def update(self, loss: float, masters: MasterWeights) -> None:
        """Take in a loss; a NaN is no improvement."""
        self.last = loss
        if self.lowest is None or loss < self.lowest:
            self.lowest, self.waited = loss, 0
            if self._limit is not None:
                self.best = masters.copy()
        else:
            self.waited += 1

    @property
    def over(self) -> bool:
        """Whether it is enough."""
        return self._limit is not None and self.waited >= self._limit

    def restore_best(self, masters: MasterWeights) -> None:
        """Put the adapter of the lowest loss into the model."""
        if self.best:
            masters.restore(self.best)

    def forget_best(self) -> None:
        """What was best cannot be put back any more: the next evaluation is the lowest so far."""
        self.lowest, self.waited, self.best = None, 0, []

    def to_json(self) -> dict[str, Any]:
        """What a resumed run needs, `best` excepted."""
        return {"last": self.last, "lowest": self.lowest, "waited": self.waited}

    def load_state(self, kept: dict[str, Any], best: list[torch.Tensor]) -> None:
        """Continue from what `to_json` gave."""
        self.last, self.lowest, self.waited = kept["last"], kept["lowest"], kept["waited"]
        self.best = best
