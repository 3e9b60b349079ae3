"""Where a run's gradients come from: the one place where a model and a batch become a loss, and who adds them up.

A `loratlas.training.run.RunState` asks its `GradientSource` for the gradient of every step and does the rest itself:
clipping, update, checkpoint. A run by itself has `ModelGradients`, which passes its rows through the model; runs of a
fleet have sources of their own, which share passes (`loratlas.training.fleet.shared_passes`).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from loratlas.adapters.layers.lean_lora import lean
from loratlas.errors import DataError
from loratlas.evaluation.token_losses import token_losses
from loratlas.modeling import device_of
from loratlas.training.run_context import dropout_stream, training_mode
from loratlas.training.step.compilation import Compilation
from loratlas.training.step.frozen_prefix import FrozenPrefix, lowest_trained_layer, prefix_for
from loratlas.training.step.memory import kept_pages
from loratlas.training.step.microbatches import microbatches

if TYPE_CHECKING:
    import torch

    from loratlas.data.batches.batching import Batch
    from loratlas.data.examples import Encoded
    from loratlas.training.master_weights import MasterWeights
    from loratlas.training.settings import Settings


def step_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Summed negative log-likelihood, in nats, of the counted tokens of a batch:

        L = Σ_t −log p(target_t | tokens before it, in its own example)

    Logits exist at the counted positions only, some at a time; the logarithm is taken in float32 whatever the model's
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StepGradient:
    """What a step's gradient was taken of; the gradient itself is in the run's master weights.

    Args:
        nll: summed loss of the counted tokens, nats.
        labelled: counted tokens.
        tokens: padding excluded.
        seconds: that computing it took.
    """

    nll: float
    labelled: int
    tokens: int
    seconds: float


class GradientSource(ABC):
    """Puts the gradient of a step's mean loss into a run's master weights.

    Args:
        masters: of the run.

    Attributes:
        fixed: why the parameters cannot change while the run lasts; None where they can.
        prefix: states kept of frozen layers, and why these or why none.
    """

    fixed: str | None = None

    def __init__(self, masters: MasterWeights) -> None:
        self.masters = masters
        self.prefix: FrozenPrefix | None = None
        self.prefix_reason = "no step was taken"
        self.resumed_depth: int | None = None
        """Layers below it, of the process that wrote the checkpoint; None where there was none."""

    @abstractmethod
    def gradient(self, step: int, rows: np.ndarray) -> StepGradient:
        """Put the gradient of a step into the master weights.

        Args:
            step: from 0.
            rows: of the step, [batch size].

        Raises:
            DataError: a step without a counted token.
        """

    @abstractmethod
    def parameters_changed(self) -> None:
        """Take note that the model has other trainable parameters than before, which the master weights now hold."""

    @property
    def compilation(self) -> tuple[bool, str]:
        """Whether the last pass ran compiled layers, and why."""
        return False, "not compiled: too few steps to judge by"

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it: plain data."""
        return {"kept_below": self.prefix.depth if self.prefix is not None else 0}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` gave. A run goes on as it began, whether memory allows it now or not: kept states
        are rounded in their own batches."""
        self.resumed_depth = int(state.get("kept_below", 0))

    def lasting(self) -> list[torch.Tensor]:
        """Tensors that live through all steps, weights excepted."""
        return self.prefix.lasting() if self.prefix is not None else []


class ModelGradients(GradientSource):
    """Gradients of one run by itself.

    Args:
        model: a `PeftModel` on its device.
        data: encoded rows.
        masters: of the model.
        settings: of the run.
        packed: whether batches are packed.
        steps: of the whole run.
    """

    def __init__(
        self,
        model: Any,
        data: Encoded,
        masters: MasterWeights,
        settings: Settings,
        *,
        packed: bool,
        steps: int,
    ) -> None:
        super().__init__(masters)
        self._model, self._data, self._settings, self._packed = model, data, settings, packed
        self._device = device_of(model)
        self._begin_dropout: Any = None
        self._compilation = Compilation(
            model, settings.compile, steps=steps, dtype=settings.dtype, dropout=bool(settings.dropout)
        )

    @contextmanager
    def open(self) -> Iterator[Self]:
        """Within this context the model trains: its modes, layers, random numbers and weights are the run's."""
        with ExitStack() as stack:
            stack.enter_context(training_mode(self._model, checkpointing=self._settings.checkpointing))
            stack.enter_context(lean(self._model))
            stack.enter_context(kept_pages())
            self._begin_dropout = stack.enter_context(dropout_stream(self._settings.seed))
            self.masters.open()
            stack.callback(self.masters.close)
            yield self

    def compiling(self) -> AbstractContextManager[Any]:
        """Within this context layers are compiled, if and when that is decided. To be entered after `prepare`, whose
        passes are others than those of steps."""
        return self._compilation.run()

    def prepare(self, order: np.ndarray, done: int) -> Iterator[None]:
        """Compute what the steps to come need and is computed once, piece by piece.

        Args:
            order: rows of all steps, [steps, batch size].
            done: steps that were taken before.
        """
        if not self._packed:
            self.prefix_reason = "batches are padded"
        elif self.resumed_depth == 0:
            self.prefix_reason = "the run began without"
        else:
            self.prefix, self.prefix_reason = prefix_for(
                self._model,
                self._data,
                order,
                depth=self.resumed_depth,
                whatever_memory=bool(self.resumed_depth),
            )
        if self.prefix is not None:
            yield from self.prefix.fill(order[done:].reshape(-1))

    def gradient(self, step: int, rows: np.ndarray) -> StepGradient:
        begun = time.perf_counter()
        self._begin_dropout(step)
        try:
            nll, labelled, tokens = self._computed(rows)
        except RuntimeError as error:
            self._compilation.failed(error)
            self._begin_dropout(step)
            nll, labelled, tokens = self._computed(rows)
        seconds = time.perf_counter() - begun
        self._compilation.stepped(step + 1, seconds, tokens)
        return StepGradient(nll=nll, labelled=labelled, tokens=tokens, seconds=seconds)

    def _computed(self, rows: np.ndarray) -> tuple[float, int, int]:
        batches = list(
            microbatches(self._data, rows.tolist(), packed=self._packed, size=self._settings.micro_batch)
        )
        labelled = sum(batch.labelled for batch in batches)
        if not labelled:
            raise no_counted_token(self._data)
        self.masters.zero()
        losses = []
        for batch in batches:
            batch = batch.to(self._device)
            with self.prefix.within(batch) if self.prefix is not None else nullcontext():
                loss = step_loss(self._model, batch)
            # Law 0: the step's own count divides, not the micro-batch's.
            (loss / labelled).backward()
            self.masters.collect()
            losses.append(loss.detach())
        return sum(float(loss) for loss in losses), labelled, sum(batch.tokens for batch in batches)

    def parameters_changed(self) -> None:
        """States kept of layers that are no longer frozen are dropped."""
        lowest = lowest_trained_layer(self._model)
        if self.prefix is not None and lowest is not None and lowest < self.prefix.depth:
            self.prefix, self.prefix_reason = None, "layers below are trained now"

    @property
    def compilation(self) -> tuple[bool, str]:
        return self._compilation.on, self._compilation.reason


def no_examples(data: Encoded) -> DataError:
    """What to raise where there is nothing to train on."""
    return DataError(given=data.source, found="no examples to train on", instead="rows with an answer")


def no_counted_token(data: Encoded) -> DataError:
    """What to raise for a step whose rows have no counted token."""
    return DataError(given=data.source, found="a step without a counted token", instead="rows with an answer")
