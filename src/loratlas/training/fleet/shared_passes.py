"""Gradients of several runs from passes that they share.

Rows of several runs are laid together up to so many tokens; each counted token's loss is divided by the counted tokens
of its own run's step, so that the sum over the pass has the gradient of every run's own mean (law 0), and the runs do
not meet. A run asks its `MemberGradients` for a step's gradient as any run asks its source; the fleet has
`SharedPasses` compute those of all runs before it steps them one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from loratlas.adapters.peft_targets import adapted
from loratlas.data.batches.batching import Batch
from loratlas.evaluation.token_losses import token_losses
from loratlas.modeling import device_of
from loratlas.models.heads import head_modules
from loratlas.training.fleet.adapter_slots import AdapterSlot, SlotFactors
from loratlas.training.fleet.row_slices import RowSlices, can_join, join_batches
from loratlas.training.run_context import step_seed
from loratlas.training.step.frozen_prefix import prefix_for
from loratlas.training.step.gradients import GradientSource, StepGradient, no_counted_token
from loratlas.training.step.microbatches import microbatches

if TYPE_CHECKING:
    from loratlas.data.examples import Encoded
    from loratlas.training.fleet.adapter_bank import Bank
    from loratlas.training.fleet.members import Member
    from loratlas.training.master_weights import MasterWeights
    from loratlas.training.run import RunState
    from loratlas.training.step.memory import PeakMeter

PASS_TOKENS = {"cpu": 2048}
"""Tokens that runs share a pass up to. On a CPU a pass of one step's 16 Alpaca rows is as fast per token as one of nine
such steps, so that only small batches gain from sharing; elsewhere `OTHER_TOKENS`."""

OTHER_TOKENS = 16384


class MemberGradients(GradientSource):
    """The gradients of one run of a fleet.

    Args:
        member: the run.
        model: the base with the run's adapter attached, from which the slot takes its factors.
        masters: of that model, open.

    Attributes:
        slot: what the bank computes with.
        sites: module paths that the run adapts.
        lowest: the lowest layer with an adapter; -1 where one stands outside the layers.
    """

    fixed = "its adapters are slots of a fleet's bank, laid out when the fleet was made"

    def __init__(self, member: Member, model: Any, masters: MasterWeights) -> None:
        super().__init__(masters)
        self.settings = member.settings
        self.slot = _slot(model, member, masters)
        self.sites = frozenset(self.slot.factors)
        layers = [row.site.layer for row in member.rows]
        self.lowest = min(-1 if layer is None else layer for layer in layers)
        self._step = -1
        self._nll = self._seconds = 0.0
        self.labelled = self._tokens = 0

    def begin(self, step: int, batches: Sequence[Batch], data: Encoded) -> None:
        """Start a step of these micro-batches."""
        self.labelled = sum(batch.labelled for batch in batches)
        if not self.labelled:
            raise no_counted_token(data)
        self._step, self._nll, self._seconds = step, 0.0, 0.0
        self._tokens = sum(batch.tokens for batch in batches)
        self.slot.begin(step_seed(self.settings.seed, step))
        self.masters.zero()

    def add(self, nll: float, seconds: float) -> None:
        """Count a micro-batch whose gradient has been added: its summed loss, and its share of the pass's time."""
        if self.slot.heads:
            self.masters.collect()
        self._nll += float(np.float32(nll))
        self._seconds += seconds

    def gradient(self, step: int, rows: np.ndarray) -> StepGradient:
        assert step == self._step, "the fleet computes a step's gradients before it steps its runs"
        return StepGradient(nll=self._nll, labelled=self.labelled, tokens=self._tokens, seconds=self._seconds)

    def parameters_changed(self) -> None:
        """Never, see `fixed`."""


def _slot(model: Any, member: Member, masters: MasterWeights) -> AdapterSlot:
    """The run's factors and their gradients, by the modules they stand at, and its head."""
    held = {
        id(parameter): (parameter.data, gradient)
        for group in masters.groups
        for parameter, gradient in zip(group.parameters, group.gradients, strict=True)
    }
    layers, factors = adapted(model), {}
    for row in member.rows:
        layer = layers.get(row.site.path) or layers[row.site.module]
        (A, to_down), (B, to_up) = (held[id(side["default"].weight)] for side in (layer.lora_A, layer.lora_B))
        scale = row.scaling(rslora=member.rslora)
        own = SlotFactors(A=A, B=B, to_down=to_down, to_up=to_up, scale=scale)
        if row.site.kind == "experts":
            factors[row.site.path] = own.by_expert(row.site.experts or 1)
        else:
            factors[row.site.module] = own
    inner = model.get_base_model()
    heads = {
        path: inner.get_submodule(path).modules_to_save["default"].train() for path in head_modules(inner)
    }
    return AdapterSlot(factors, heads=heads, dropout=member.settings.dropout)


class SharedPasses:
    """Computes the gradients of runs that step together.

    Args:
        model: the bare base.
        bank: over its modules.
        data: encoded rows that all runs draw from.
        sources: of the runs, by index.
        packed: whether batches are packed.
        pass_tokens: tokens (padding included) that runs share a pass up to; None decides by the device.

    Attributes:
        passes: of the last step.
    """

    def __init__(
        self,
        model: Any,
        bank: Bank,
        data: Encoded,
        sources: Sequence[MemberGradients],
        *,
        packed: bool,
        pass_tokens: int | None,
    ) -> None:
        self._model, self._bank, self._data, self._sources = model, bank, data, list(sources)
        self._device = device_of(model)
        self._packed = packed
        self._most = pass_tokens or PASS_TOKENS.get(self._device.type, OTHER_TOKENS)
        self.passes = 0

    def prepare(self, orders: Sequence[np.ndarray]) -> Iterator[None]:
        """Compute what is computed once, piece by piece: runs whose lowest adapters stand in one layer share the states
        below it, of all rows that any of them has.

        Args:
            orders: rows of all steps of every run.
        """
        for depth in sorted({source.lowest for source in self._sources} if self._packed else ()):
            mine = [
                (source, order)
                for source, order in zip(self._sources, orders, strict=True)
                if source.lowest == depth and source.resumed_depth != 0
            ]
            if depth < 1 or not mine:
                continue
            rows = np.concatenate([order.reshape(-1) for _, order in mine])
            must = any(source.resumed_depth for source, _ in mine)
            prefix, why = prefix_for(self._model, self._data, rows, depth=depth, whatever_memory=must)
            for source, _ in mine:
                source.prefix, source.prefix_reason = prefix, why
            if prefix is not None:
                yield from prefix.fill(rows)

    def compute(self, runs: Mapping[int, RunState], peaks: Sequence[PeakMeter]) -> None:
        """Put the gradients of these runs' next steps into their master weights.

        Args:
            runs: by index, of which each takes one step next.
            peaks: watches over every run's memory, by index.
        """
        self.passes = 0
        batches: dict[int, list[Batch]] = {}
        for index, run in runs.items():
            step = run.counters.done
            rows, size = run.order[step].tolist(), run.settings.micro_batch
            batches[index] = list(microbatches(self._data, rows, packed=self._packed, size=size))
            self._sources[index].begin(step, batches[index], self._data)
        measured = {index for index, run in runs.items() if peaks[index].measures(run.counters.done)}
        for shared in self._laid(batches, measured):
            self.passes += 1
            with ExitStack() as stack:
                for index, _ in shared:
                    stack.enter_context(peaks[index].watch(runs[index].counters.done))
                self._pass(shared)

    def _laid(self, batches: Mapping[int, list[Batch]], measured: set[int]) -> list[list[tuple[int, Batch]]]:
        """Which runs share which pass: at most one micro-batch of each, runs of like depth together.

        Runs with dropout share with runs of the same sites only, so that masks are drawn in the order in which the
        run alone draws them, and, padded, with batches of the same shape, so that they are as long; a run whose memory
        is being measured is alone. Padded batches of like widths stand together.
        """

        def key(index: int, batch: Batch) -> tuple[Any, ...]:
            source = self._sources[index]
            depth = 2 * source.lowest + (source.prefix is not None)
            width = () if self._packed else (batch.input_ids.shape[1], batch.targets.shape[1])
            alone = index if index in measured else -1
            like = (tuple(sorted(source.sites)), width) if source.slot.dropout else ((), ())
            return depth, like, alone, width, index

        passes: list[list[tuple[int, Batch]]] = []
        for turn in range(max(len(own) for own in batches.values())):
            here = [(index, own[turn]) for index, own in batches.items() if turn < len(own)]
            kind = None
            for index, batch in sorted(here, key=lambda pair: key(*pair)):
                mine = key(index, batch)[:3]
                others = [other for _, other in passes[-1]] if mine == kind else []
                if others and can_join(others, batch, most=self._most):
                    passes[-1].append((index, batch))
                else:
                    passes.append([(index, batch)])
                kind = mine
        return passes

    def _pass(self, shared: Sequence[tuple[int, Batch]]) -> None:
        begun = time.perf_counter()
        batch = join_batches([own for _, own in shared], pad_id=self._data.pad_id)
        sources = [self._sources[index] for index, _ in shared]
        row_slices = RowSlices.of(
            [(source.slot, own) for source, (_, own) in zip(sources, shared, strict=True)]
        )
        divisors = torch.tensor([1 / source.labelled for source in sources], dtype=torch.float32)
        counts = torch.tensor([own.labelled for _, own in shared])
        weights = divisors.repeat_interleave(counts, output_size=batch.labelled).to(self._device)
        prefix = sources[0].prefix  # of like depth, all have the same or none
        batch = batch.to(self._device)
        with self._bank.use(row_slices):
            with prefix.within(batch) if prefix is not None else nullcontext():
                losses = token_losses(self._model, batch)
            (losses * weights.to(losses.dtype)).sum().backward()
        sums = torch.stack([losses.detach()[own.counted].double().sum() for own in row_slices.slices])
        seconds = time.perf_counter() - begun
        for source, (_, own), nll in zip(sources, shared, sums.tolist(), strict=True):
            source.add(nll, seconds * own.tokens / max(1, batch.tokens))
