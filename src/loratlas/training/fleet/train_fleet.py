"""Several runs over one frozen base, step by step: one model in memory, one order of work, K results.

Every run keeps what decides it: its own masters, moments, clipping, schedule, order of rows, dropout stream, curve and
checkpoint (each is the very `loratlas.training.run.RunState` that `fit` drives, with another source of gradients). Only
the pass through the model is shared (`loratlas.training.fleet.shared_passes`).

A run that diverges is left out of the next step; the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from loratlas.adapters.trained_heads import detach_adapters
from loratlas.errors import SettingsError
from loratlas.interruption import interruptible
from loratlas.training.checkpoint import describe_base, weights_digest
from loratlas.training.fleet.adapter_bank import Bank
from loratlas.training.fleet.equivalence_check import why_not_shared
from loratlas.training.fleet.members import Member, why_not_in_fleet
from loratlas.training.fleet.shared_passes import MemberGradients, SharedPasses
from loratlas.training.input_start import begin
from loratlas.training.master_weights import MasterWeights
from loratlas.training.run import RunState
from loratlas.training.run_context import training_mode
from loratlas.training.run_events import FitResult, StepEvent
from loratlas.training.site_rates import site_rate_hooks
from loratlas.training.step.memory import kept_pages

if TYPE_CHECKING:
    from loratlas.data.examples import Encoded


class CannotShareError(SettingsError):
    """Runs of this base cannot share a pass; one by one they can be trained."""


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
        self.model, self.data, self.members = model, data, list(members)
        self.bank = Bank(model, [row for member in members for row in member.rows])
        reason = why_not_shared(model, self.bank, data, packed=packed) if len(members) > 1 else None
        if reason is not None:
            raise CannotShareError(
                given=f"a fleet of {len(members)} runs", found=reason, instead="these runs one by one"
            )
        kept = any(member.out is not None for member in members)
        weights = weights_digest(model) if kept else None
        made = [self._run(member, packed=packed, weights=weights) for member in self.members]
        self.runs = [run for run, _ in made]
        self.passes = SharedPasses(
            model,
            self.bank,
            data,
            [source for _, source in made],
            packed=packed,
            pass_tokens=pass_tokens,
        )

    def _run(self, member: Member, *, packed: bool, weights: str | None) -> tuple[RunState, MemberGradients]:
        """A run of the fleet, and where its gradients will come from. Its adapter does not stay on the base."""
        model, settings = self._attached(member), member.settings
        steps = settings.steps_for(len(self.data))
        try:
            begin(model, self.data, settings, packed=packed, steps=steps)  # a resumed run overwrites it
            masters = MasterWeights(model, loraplus=settings.loraplus)
            masters.open()
            source = MemberGradients(member, model, masters)
            run = RunState(
                self.model,
                self.data,
                settings,
                source,
                packed=packed,
                packing_reason="decided by the caller",
                base=lambda: describe_base(model, weights=weights),
                out=member.out,
                hooks=(*site_rate_hooks(settings, steps), *member.hooks),
            )
        finally:
            detach_adapters(model)
        return run, source

    def _attached(self, member: Member) -> Any:
        from loratlas.adapters.attach import attach

        settings = member.settings
        options = {"rslora": member.rslora, "dropout": settings.dropout, "init": settings.drawn}
        return attach(member.rows, self.model, seed=settings.seed, **options)

    def fit(
        self,
        *,
        resume: bool = False,
        on_step: Callable[[int, StepEvent], None] | None = None,
        measure_memory: bool = True,
    ) -> list[FitResult]:
        """Train all runs to their ends.

        Args:
            resume: each run goes on from the checkpoint in its folder, if there is one.
            on_step: called with the run's index and what its step was, in order.
            measure_memory: record two steps of every run, in which it shares no pass; which steps these are depends on
                where a resumed run goes on, so that without them it repeats bit for bit.

        Returns:
            What `loratlas.training.loop.fit` returns, of every run; a step's seconds are the run's share by tokens.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; runs with a folder have saved their state.
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
                    run.load_state()
            peaks = [run.peak(measured=measure_memory) for run in self.runs]
            try:
                for _ in self.passes.prepare([run.order for run in self.runs]):
                    stop.check()
                setup = (time.perf_counter() - begun) / len(self.runs)
                while going := {index: run for index, run in enumerate(self.runs) if not run.finished}:
                    self.passes.compute(going, peaks)
                    for index, run in going.items():
                        event = run.step()
                        if event is not None and on_step is not None:
                            on_step(index, event)
                    stop.check()
            except KeyboardInterrupt:
                errors = [run.interrupted(stop.by) for run in self.runs]  # each saves its own state
                raise errors[0] from None
        for run in self.runs:
            run.refuse_non_finite()
            run.save()
        return [
            run.result(setup, peak.bytes(run.lasting())) for run, peak in zip(self.runs, peaks, strict=True)
        ]

    def peft_model(self, index: int) -> Any:
        """One run as a `PeftModel` on the base, its adapter float32; `detach_adapters` gives the base back."""
        model = self._attached(self.members[index])
        trained = dict(self.runs[index].masters.named())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(trained[name])
        return model
