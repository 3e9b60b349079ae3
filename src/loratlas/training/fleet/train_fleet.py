"""Several runs over one frozen base, step by step side by side: one model in memory, one order of work, K results.

Every run keeps what decides it: its own masters, moments, clipping, schedule, order of rows, dropout stream, curve and
checkpoint (each is the very `Run` that `fit` drives). Only the pass through the model is shared. Rows of several runs
are laid together up to `PASS_TOKENS`; each counted token's loss is divided by the counted tokens of its own run's
step, so that the sum over the pass has the gradient of every run's own mean (law 0), and the runs do not meet.

A run that diverges is left out of the next step; the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from loratlas.adapters.peft_targets import adapted
from loratlas.adapters.trained_heads import detach_adapters
from loratlas.data.batching import Batch
from loratlas.errors import DataError, SettingsError
from loratlas.evaluation.token_losses import token_losses
from loratlas.models.heads import head_modules
from loratlas.training.fleet.adapter_bank import Bank
from loratlas.training.fleet.adapter_slots import AdapterSlot, Factors
from loratlas.training.fleet.equivalence_check import why_not_shared
from loratlas.training.fleet.members import Member, why_not_in_fleet
from loratlas.training.fleet.row_slices import RowSlices, can_join, join_batches
from loratlas.training.frozen_prefix import prefix_for
from loratlas.training.loop import Run
from loratlas.training.memory import Peak, kept_pages
from loratlas.training.microbatches import microbatches
from loratlas.training.run_context import interruptible, step_seed, training_mode
from loratlas.training.run_events import FitResult, StepEvent

if TYPE_CHECKING:
    from loratlas.data.examples import Encoded
    from loratlas.training.master_weights import MasterWeights

PASS_TOKENS = {"cpu": 2048}
"""Tokens that runs share a pass up to. On a CPU a pass of one step's 16 Alpaca rows is as fast per token as one of nine
such steps, so that only small batches gain from company; elsewhere `OTHER_TOKENS`."""

OTHER_TOKENS = 16384


class CannotShareError(SettingsError):
    """Runs of this base cannot share a pass; one by one they can be trained."""


class _FleetRun(Run):
    """A run whose gradient is found together with others."""

    def __init__(self, base: Any, data: Encoded, member: Member, *, packed: bool) -> None:
        from loratlas.adapters.attach import attach

        settings = member.settings
        options = {"rslora": member.rslora, "dropout": settings.dropout, "init": settings.init}
        model = attach(member.rows, base, seed=settings.seed, **options)
        try:
            super().__init__(model, data, settings, evaluate=None, out=member.out, packed=packed)
            self.masters.open()
            self.slot = self._tenant(model, member)
        finally:
            detach_adapters(model)
        self.model = base
        self.sites = frozenset(self.slot.factors)
        self.lowest = min((row.site.layer if row.site.layer is not None else -1) for row in member.rows)
        self.found: tuple[float, int, int] = (0.0, 0, 0)

    def _tenant(self, model: Any, member: Member) -> AdapterSlot:
        held = {
            id(parameter): (parameter.data, gradient)
            for group in self.masters.groups
            for parameter, gradient in zip(group.parameters, group.inputs, strict=True)
        }
        layers, factors = adapted(model), {}
        for row in member.rows:
            layer = layers.get(row.site.path) or layers[row.site.module]
            (A, to_down), (B, to_up) = (
                held[id(side["default"].weight)] for side in (layer.lora_A, layer.lora_B)
            )
            scale = row.scaling(rslora=member.rslora)
            found = Factors(A=A, B=B, to_down=to_down, to_up=to_up, scale=scale)
            if row.site.kind == "experts":
                factors[row.site.path] = found.by_expert(row.site.experts or 1)
            else:
                factors[row.site.module] = found
        inner = model.get_base_model()
        heads = {
            path: inner.get_submodule(path).modules_to_save["default"].train() for path in head_modules(inner)
        }
        return AdapterSlot(factors, heads=heads, dropout=self.settings.dropout)

    def _gradient(self, rows: np.ndarray) -> tuple[float, int, int]:
        return self.found


class Fleet:
    """Runs over one base.

    Args:
        model: the bare base, frozen; left as it was.
        data: encoded rows that all runs draw from.
        members: the runs.
        packed: as for `loratlas.training.loop.fit`; proven once for all of them.
        pass_tokens: tokens (padding included) that runs share a pass up to; None decides by the device.

    Raises:
        SettingsError: a run that cannot be part of a fleet (`why_not_in_fleet`).
        CannotShareError: a base whose passes cannot be shared
            (`loratlas.training.fleet.equivalence_check.why_not_shared`).

    Example:
        ``fleet = Fleet(base, rows, members); results = fleet.fit(); model = fleet.peft_model(0)``
    """

    def __init__(
        self,
        model: Any,
        data: Encoded,
        members: Sequence[Member],
        *,
        packed: bool = True,
        pass_tokens: int | None = None,
    ) -> None:
        for member in members:
            reason = why_not_in_fleet(model, member)
            if reason is not None:
                raise SettingsError(given="a run in a fleet", found=reason, instead="this run alone")
        self.model, self.data, self.members, self.packed = model, data, list(members), packed
        self.bank = Bank(model, [row for member in members for row in member.rows])
        apart = why_not_shared(model, self.bank, data, packed=packed) if len(members) > 1 else None
        if apart is not None:
            raise CannotShareError(
                given=f"a fleet of {len(members)} runs", found=apart, instead="these runs one by one"
            )
        self.runs = [_FleetRun(model, data, member, packed=packed) for member in self.members]
        self.device = self.runs[0].device
        self.passes = 0  # of the last step
        self.pass_tokens = pass_tokens or PASS_TOKENS.get(self.device.type, OTHER_TOKENS)

    def fit(
        self,
        *,
        resume: bool = False,
        on_step: Callable[[int, StepEvent], None] | None = None,
        on_gradient: Callable[[int, MasterWeights], None] | None = None,
        measure_memory: bool = True,
    ) -> list[FitResult]:
        """Train all runs to their ends.

        Args:
            resume: each run goes on from the checkpoint in its folder, if there is one.
            on_step: told (place of the run, what its step was), in order.
            on_gradient: shown (place of the run, its masters) at every step, as by `loratlas.training.loop.fit`.
            measure_memory: record two steps of every run, in which it shares no pass; which steps these are depends on
                where a resumed run goes on, so that without them it repeats bit for bit.

        Returns:
            What `loratlas.training.loop.fit` returns, of every run; a step's seconds are the run's share by tokens.

        Raises:
            Interrupted: Ctrl-C; runs with a folder have saved their state.
        """
        begun = time.perf_counter()
        for place, run in enumerate(self.runs):
            run.on_gradient = partial(on_gradient, place) if on_gradient is not None else None
        with ExitStack() as stack:
            stack.enter_context(
                training_mode(self.model, checkpointing=self.members[0].settings.checkpointing)
            )
            stack.enter_context(self.bank.open())
            stack.enter_context(kept_pages())
            stop = stack.enter_context(interruptible())
            if resume:
                for run in self.runs:
                    run.load_state()
            unmeasured = np.zeros(0, dtype=np.int64)
            peaks = [
                run.peak() if measure_memory else Peak(self.device, unmeasured, first=0) for run in self.runs
            ]
            try:
                for _ in self._keep_prefixes():
                    if stop.asked:
                        raise KeyboardInterrupt
                setup = (time.perf_counter() - begun) / len(self.runs)
                while going := [place for place, run in enumerate(self.runs) if not run.finished]:
                    self._gradients(going, peaks)
                    for place in going:
                        event = self.runs[place].step()
                        if event is not None and on_step is not None:
                            on_step(place, event)
                    if stop.asked:
                        raise KeyboardInterrupt
            except KeyboardInterrupt:
                errors = [run.interrupted() for run in self.runs]  # each saves its own state
                raise errors[0] from None
        for run in self.runs:
            run.save()
        return [
            run.result(setup, peak.bytes(run.lasting())) for run, peak in zip(self.runs, peaks, strict=True)
        ]

    def peft_model(self, place: int) -> Any:
        """One run as a `PeftModel` on the base, its adapter float32; `detach_adapters` gives the base back."""
        from loratlas.adapters.attach import attach

        member, run = self.members[place], self.runs[place]
        settings = member.settings
        options = {"rslora": member.rslora, "dropout": settings.dropout, "init": settings.init}
        model = attach(member.rows, self.model, seed=settings.seed, **options)
        trained = dict(run.masters.named())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(trained[name])
        return model

    def _keep_prefixes(self) -> Iterator[None]:
        """Runs whose lowest adapters stand in one layer share the states below it, of all rows that any of them has."""
        for depth in sorted({run.lowest for run in self.runs} if self.packed else ()):
            runs = [run for run in self.runs if run.lowest == depth and run.kept_before != 0]
            if depth < 1 or not runs:
                continue
            order = np.concatenate([run.order.reshape(-1) for run in runs])
            must = any(run.kept_before for run in runs)
            prefix = prefix_for(self.model, self.data, order, depth=depth, whatever_memory=must)
            for run in runs:
                run.prefix = prefix
            if prefix is not None:
                yield from prefix.fill(order)

    def _gradients(self, going: Sequence[int], peaks: Sequence[Peak]) -> None:
        """Gradients of this step in every run's masters."""
        self.passes = 0
        parts: dict[int, list[Batch]] = {}
        for place in going:
            run = self.runs[place]
            step = run.counters.done
            rows = run.order[step].tolist()
            parts[place] = list(self._batches(rows, run.settings.micro_batch))
            labelled = sum(batch.labelled for batch in parts[place])
            if not labelled:
                raise DataError(
                    given=self.data.source,
                    found="a step without a counted token",
                    instead="rows with an answer",
                )
            run.found = (0.0, labelled, sum(batch.tokens for batch in parts[place]))
            run.before = 0.0
            run.slot.begin(step_seed(run.settings.seed, step))
            run.masters.zero()
        for shared in self._passes(parts, peaks):
            self.passes += 1
            with ExitStack() as stack:
                for place, _ in shared:
                    stack.enter_context(peaks[place].watch(self.runs[place].counters.done))
                self._pass(shared)

    def _batches(self, rows: list[int], size: int | None) -> Iterator[Batch]:
        return microbatches(self.data, rows, packed=self.packed, size=size)

    def _passes(self, parts: dict[int, list[Batch]], peaks: Sequence[Peak]) -> list[list[tuple[int, Batch]]]:
        """Which runs share which pass: at most one micro-batch of each, runs of like depth together.

        Runs with dropout share with runs of the same sites only, so that masks are drawn in the order in which the
        run alone draws them, and, padded, with batches of the same shape, so that they are as long; a run whose memory
        is being measured is alone. Padded batches of like widths stand together.
        """

        def company(place: int, batch: Batch) -> tuple[Any, ...]:
            run = self.runs[place]
            depth = 2 * run.lowest + (run.prefix is not None)
            width = () if self.packed else (batch.input_ids.shape[1], batch.targets.shape[1])
            alone = place if peaks[place].measures(run.counters.done) else -1
            like = (tuple(sorted(run.sites)), width) if run.slot.dropout else ((), ())
            return depth, like, alone, width, place

        found: list[list[tuple[int, Batch]]] = []
        for turn in range(max(len(batches) for batches in parts.values())):
            here = [(place, batches[turn]) for place, batches in parts.items() if turn < len(batches)]
            kind = None
            for place, batch in sorted(here, key=lambda part: company(*part)):
                mine = company(place, batch)[:3]
                others = [other for _, other in found[-1]] if mine == kind else []
                if others and can_join(others, batch, most=self.pass_tokens):
                    found[-1].append((place, batch))
                else:
                    found.append([(place, batch)])
                kind = mine
        return found

    def _pass(self, shared: Sequence[tuple[int, Batch]]) -> None:
        begun = time.perf_counter()
        batch = join_batches([part for _, part in shared], pad_id=self.data.pad_id)
        row_slices = RowSlices.of([(self.runs[place].slot, part) for place, part in shared])
        divisors = [1 / self.runs[place].found[1] for place, _ in shared]
        counts = torch.tensor([part.labelled for _, part in shared])
        weights = torch.tensor(divisors, dtype=torch.float32).repeat_interleave(counts).to(self.device)
        prefix = self.runs[shared[0][0]].prefix  # of like depth, all have the same or none
        batch = batch.to(self.device)
        with self.bank.seat(row_slices):
            with prefix.within(batch) if prefix is not None else nullcontext():
                losses = token_losses(self.model, batch)
            (losses * weights.to(losses.dtype)).sum().backward()
        sums = torch.stack(
            [losses.detach()[share.counted].double().sum() for share in row_slices.shares]
        ).tolist()
        seconds = time.perf_counter() - begun
        for (place, part), nll in zip(shared, sums, strict=True):
            run = self.runs[place]
            if run.slot.heads:
                run.masters.collect()
            run.found = (run.found[0] + float(np.float32(nll)), *run.found[1:])
            run.before += seconds * part.tokens / max(1, batch.tokens)
