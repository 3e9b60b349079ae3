"""Several runs over one frozen base, step by step side by side: one model in memory, one order of work, K results.

Every run keeps what decides it: its own masters, moments, clipping, schedule, order of rows, dropout stream, curve and
checkpoint (each is the very `Run` that `fit` drives). Only the pass through the model is shared. Rows of several runs
are laid end to end up to `PASS_TOKENS`; each counted token's loss is divided by the counted tokens of its own run's
step, so that the sum over the pass has the gradient of every run's own mean (law 0), and the runs do not meet.

A run that diverges is left out of the next step; the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from loratlas.adapters.attach import takes_from_base
from loratlas.adapters.heads import take_off
from loratlas.anatomy.heads import head_modules
from loratlas.data.batches import Batch
from loratlas.errors import DataError, SettingsError
from loratlas.evaluation.losses import token_losses
from loratlas.training.bank import _SERVED, Bank, Factors, Share, Tenant
from loratlas.training.conditions import interruptible, step_seed, training_mode
from loratlas.training.loop import Run
from loratlas.training.memory import Peak, kept_pages
from loratlas.training.microbatches import microbatches
from loratlas.training.prefix import prefix_for
from loratlas.training.records import FitResult, StepEvent
from loratlas.training.settings import Settings

if TYPE_CHECKING:
    from loratlas.adapters.rows import Row
    from loratlas.data.encode import Encoded

PASS_TOKENS = {"cpu": 2048}
"""Tokens that runs share a pass up to. On a CPU a pass of one step's 16 Alpaca rows is as fast per token as one of nine
such steps, so that only small batches gain from company; elsewhere `OTHER_TOKENS`."""

OTHER_TOKENS = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One run of a fleet.

    Args:
        rows: of its plan.
        settings: of the run; ``seed`` draws its initial weights as well.
        rslora: scale by α/√r.
        out: folder for its checkpoints; None keeps none.
    """

    rows: Sequence[Row]
    settings: Settings
    rslora: bool = False
    out: Path | None = None


def why_alone(model: Any, member: Member) -> str | None:
    """What keeps a run out of a fleet, in words; None if nothing does.

    Args:
        model: the bare base.
        member: the run.
    """
    settings = member.settings
    if head_modules(model):
        return "a head trains beside its adapters, and a fleet holds adapters alone"
    if takes_from_base(settings.init):
        return f"init {settings.init} changes the base, which a fleet shares"
    if settings.early_stop is not None or settings.evaluate_every is not None:
        return "it is evaluated while it trains"
    if settings.checkpointing and settings.dropout:
        return "recomputed layers would draw other dropout masks"
    if settings.dropout and model.get_input_embeddings().weight.device.type != "cpu":
        return "its dropout masks are drawn by the accelerator, whose stream a fleet does not follow"
    if settings.compile == "on":
        return "its layers are compiled, with its own adapters in them"
    if settings.report_to:
        return "it reports to a tracker while it trains"
    for row in member.rows:
        if len(row.modules) > 1:
            return f"{row.site.module} is one matrix under {len(row.modules)} names"
        module = model.get_submodule(row.site.module)
        if type(module) not in _SERVED:
            return f"{row.site.module} is a {type(module).__name__}, and a fleet serves plain matrices"
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return f"something is hooked onto {row.site.module}"
    return None


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
            self.tenant = self._tenant(member)
        finally:
            take_off(model)
        self.model = base
        self.sites = frozenset(self.tenant.factors)
        self.lowest = min((row.site.layer if row.site.layer is not None else -1) for row in member.rows)
        self.found: tuple[float, int, int] = (0.0, 0, 0)

    def _tenant(self, member: Member) -> Tenant:
        held = {
            name: (parameter.data, gradient)
            for group in self.masters.groups
            for name, parameter, gradient in zip(group.names, group.parameters, group.inputs, strict=True)
        }
        factors = {}
        for row in member.rows:
            name = f"base_model.model.{row.site.module}.lora_{{}}.default.weight"
            (A, to_down), (B, to_up) = held[name.format("A")], held[name.format("B")]
            scale = row.scaling(rslora=member.rslora)
            factors[row.site.module] = Factors(A=A, B=B, to_down=to_down, to_up=to_up, scale=scale)
        return Tenant(factors, dropout=self.settings.dropout)

    def _gradient(self, rows: np.ndarray) -> tuple[float, int, int]:
        return self.found


class Fleet:
    """Runs over one base.

    Args:
        model: the bare base, frozen; left as it was.
        data: encoded rows that all runs draw from.
        members: the runs.
        packed: as for `loratlas.training.loop.fit`; proven once for all of them.
        pass_tokens: tokens that runs share a pass up to; None decides by the device.

    Raises:
        SettingsError: a run that cannot be part of a fleet (`why_alone`), or padded batches.

    Example:
        ``fleet = Fleet(base, rows, members); results = fleet.fit(); model = fleet.leave(0)``
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
            reason = why_alone(model, member)
            if reason is None and not packed:
                reason = "this base needs padded batches, and a fleet lays runs end to end"
            if reason is not None:
                raise SettingsError(given="a run in a fleet", found=reason, instead="this run alone")
        self.model, self.data, self.members = model, data, list(members)
        self.runs = [_FleetRun(model, data, member, packed=packed) for member in self.members]
        paths = dict.fromkeys(row.site.module for member in members for row in member.rows)
        self.bank = Bank(model, list(paths))
        self.device = self.runs[0].device
        self.passes = 0  # of the last step
        self.pass_tokens = pass_tokens or PASS_TOKENS.get(self.device.type, OTHER_TOKENS)

    def fit(
        self, *, resume: bool = False, on_step: Callable[[int, StepEvent], None] | None = None
    ) -> list[FitResult]:
        """Train all runs to their ends.

        Args:
            resume: each run goes on from the checkpoint in its folder, if there is one.
            on_step: told (place of the run, what its step was), in order.

        Returns:
            What `loratlas.training.loop.fit` returns, of every run; a step's seconds are the run's share by tokens.

        Raises:
            Interrupted: Ctrl-C; runs with a folder have saved their state.
        """
        begun = time.perf_counter()
        with ExitStack() as stack:
            stack.enter_context(
                training_mode(self.model, checkpointing=self.members[0].settings.checkpointing)
            )
            stack.enter_context(self.bank.open())
            stack.enter_context(kept_pages())
            stop = stack.enter_context(interruptible())
            if resume:
                for run in self.runs:
                    run.take_up()
            peaks = [run.peak() for run in self.runs]
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

    def leave(self, place: int) -> Any:
        """One run as a `PeftModel` on the base, its adapter float32; `take_off` gives the base back."""
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
        for depth in sorted({run.lowest for run in self.runs}):
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
            step = run.tally.done
            rows = run.order[step].tolist()
            parts[place] = list(microbatches(self.data, rows, packed=True, size=run.settings.micro_batch))
            labelled = sum(batch.labelled for batch in parts[place])
            if not labelled:
                raise DataError(
                    given=self.data.source,
                    found="a step without a counted token",
                    instead="rows with an answer",
                )
            run.found = (0.0, labelled, sum(batch.tokens for batch in parts[place]))
            run.before = 0.0
            run.tenant.begin(step_seed(run.settings.seed, step))
            run.masters.zero()
        for shared in self._passes(parts, peaks):
            self.passes += 1
            with ExitStack() as stack:
                for place, _ in shared:
                    stack.enter_context(peaks[place].watch(self.runs[place].tally.done))
                self._pass(shared)

    def _passes(self, parts: dict[int, list[Batch]], peaks: Sequence[Peak]) -> list[list[tuple[int, Batch]]]:
        """Which runs share which pass: at most one micro-batch of each, runs of like depth together.

        Runs with dropout share with runs of the same sites only, so that masks are drawn in the order in which the
        run alone draws them; a run whose memory is being measured is alone.
        """

        def company(place: int) -> tuple[int, tuple[str, ...], int]:
            run = self.runs[place]
            sites = tuple(sorted(run.sites)) if run.tenant.dropout else ()
            depth = 2 * run.lowest + (run.prefix is not None)
            return depth, sites, place if peaks[place].measures(run.tally.done) else -1

        order = sorted(parts, key=lambda place: (company(place), place))
        found: list[list[tuple[int, Batch]]] = []
        for turn in range(max(len(batches) for batches in parts.values())):
            tokens, kind = 0, None
            for place in order:
                if turn >= len(parts[place]):
                    continue
                batch, mine = parts[place][turn], company(place)
                size = batch.input_ids.shape[1]
                if kind is None or mine != kind or tokens + size > self.pass_tokens:
                    found.append([])
                    tokens, kind = 0, mine
                found[-1].append((place, batch))
                tokens += size
        return found

    def _pass(self, shared: Sequence[tuple[int, Batch]]) -> None:
        begun = time.perf_counter()
        batch = joined([part for _, part in shared])
        shares, token, count = [], 0, 0
        for place, part in shared:
            ends = token + part.input_ids.shape[1], count + part.labelled
            tenant = self.runs[place].tenant
            shares.append(Share(tenant=tenant, tokens=slice(token, ends[0]), counted=slice(count, ends[1])))
            token, count = ends
        divisors = [1 / self.runs[place].found[1] for place, _ in shared]
        counts = torch.tensor([part.labelled for _, part in shared])
        weights = torch.tensor(divisors, dtype=torch.float32).repeat_interleave(counts).to(self.device)
        prefix = self.runs[shared[0][0]].prefix  # of like depth, all have the same or none
        batch = batch.to(self.device)
        with self.bank.seat(shares):
            with prefix.within(batch) if prefix is not None else nullcontext():
                losses = token_losses(self.model, batch)
            (losses * weights.to(losses.dtype)).sum().backward()
        sums = torch.stack([losses.detach()[share.counted].double().sum() for share in shares]).tolist()
        seconds = time.perf_counter() - begun
        for (place, part), nll in zip(shared, sums, strict=True):
            run = self.runs[place]
            run.found = (run.found[0] + float(np.float32(nll)), *run.found[1:])
            run.before += seconds * part.tokens / max(1, batch.tokens)


def joined(batches: Sequence[Batch]) -> Batch:
    """Packed batches end to end, as one.

    Args:
        batches: packed, on the CPU.
    """
    if len(batches) == 1:
        return batches[0]
    sizes = [batch.input_ids.shape[1] for batch in batches]
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    firsts = np.cumsum([0, *(len(batch.lengths) for batch in batches[:-1])]).tolist()

    def beside(name: str) -> torch.Tensor:
        return torch.cat([getattr(batch, name) for batch in batches], 1)

    return replace(
        batches[0],
        input_ids=beside("input_ids"),
        position_ids=beside("position_ids"),
        targets=beside("targets"),
        example=torch.cat([batch.example + first for batch, first in zip(batches, firsts, strict=True)], 1),
        where=torch.cat([batch.where + start for batch, start in zip(batches, starts, strict=True)]),
        lengths=tuple(chain.from_iterable(batch.lengths for batch in batches)),
        rows=tuple(chain.from_iterable(batch.rows for batch in batches)),
        labelled=sum(batch.labelled for batch in batches),
        tokens=sum(batch.tokens for batch in batches),
    )
