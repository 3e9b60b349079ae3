"""The runs of trial training: side by side where that is possible, gone on with where an earlier process stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loratlas.adapters.plan_row import PlanRow
from loratlas.errors import SettingsError
from loratlas.scan.advice import LENGTHS, TRIAL_LR
from loratlas.scan.scan_folder import SAVE_EVERY, go_on

if TYPE_CHECKING:
    from loratlas.data.examples import Encoded
    from loratlas.training.fleet.members import Member
    from loratlas.training.loss_change import LossChangeAllocation
    from loratlas.training.run_events import FitResult, StepEvent

SEEDS = 2
"""Trials, each with rows of its own draw; the spread between them is the error."""

STEPS = max(LENGTHS)
"""Of a trial."""

EARLY = 1 / 2
"""Share of a trial whose descent is not counted. The first steps fall furthest, and any adapter would have made them:
counted too, ρ with the truth is 0.60 instead of 0.93 on embedded facts."""

LR = TRIAL_LR
BATCH = 16
"""Rows of a trial's step."""


@dataclass(slots=True, kw_only=True)
class TrialListener:
    """What listens to trials.

    Args:
        step: called with the number of trials that made a step, after each of their steps.
        removal: called after every adapter that was taken away and put back.
        resumed: called with the steps that an earlier process made.
    """

    step: Callable[[int], object] = field(default=lambda _: None)
    removal: Callable[[], object] = field(default=lambda: None)
    resumed: Callable[[int], object] = field(default=lambda _: None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """Trials of one plan; arguments as of `probe`."""

    plan: Sequence[PlanRow]
    rows: Encoded
    seed: int
    steps: int
    lr: float
    packed: bool
    folders: Sequence[Path] | None

    @property
    def distinct(self) -> frozenset[int]:
        """Indices of the rows that all trials train on."""
        from loratlas.data.batches.batching import training_order

        orders = [
            training_order(len(self.rows), steps=self.steps, batch_size=BATCH, seed=self.seed + trial)
            for trial in range(SEEDS)
        ]
        return frozenset(np.concatenate(orders).reshape(-1).tolist())

    def run(self, model: Any, watch: TrialListener) -> Iterator[tuple[Any, FitResult, Mapping[str, float]]]:
        """(trained model, its result, parameter → descent), one after the other; the one before must be detached."""
        from loratlas.training.fleet.train_fleet import Fleet
        from loratlas.training.loss_change import LossChangeAllocation
        from loratlas.training.master_weights import compute_dtype

        dtype = str(compute_dtype(model)).removeprefix("torch.")
        after = math.ceil(EARLY * self.steps)
        descents = [LossChangeAllocation(after=after) for _ in range(SEEDS)]
        members = self._members(dtype, descents)
        try:
            fleet = Fleet(model, self.rows, members, packed=self.packed)
        except SettingsError:  # these trials cannot share a pass
            yield from self._one_by_one(model, members, descents, watch)
            return

        last = go_on(self.folders) if self.folders is not None else 0
        if last:
            watch.resumed(SEEDS * last)

        def stepped(_: int, event: StepEvent) -> None:
            nonlocal last
            if event.step > last:  # one pass made the steps of all trials
                last = event.step
                watch.step(SEEDS)

        results = fleet.fit(
            resume=self.folders is not None,
            on_step=stepped,
            measure_memory=False,
        )
        for index, result in enumerate(results):
            yield fleet.peft_model(index), result, descents[index].values()

    def _members(self, dtype: str, descents: Sequence[LossChangeAllocation]) -> list[Member]:
        from loratlas.training.fleet.members import Member
        from loratlas.training.settings import Settings

        return [
            Member(
                rows=self.plan,
                settings=Settings(
                    steps=self.steps,
                    lr=self.lr,
                    batch_size=BATCH,
                    warmup=0.1,
                    seed=self.seed + trial,
                    dtype=dtype,
                    save_every=SAVE_EVERY,
                ),
                out=self.folders[trial] if self.folders is not None else None,
                hooks=[descent],
            )
            for trial, descent in enumerate(descents)
        ]

    def _one_by_one(
        self,
        model: Any,
        members: Sequence[Member],
        descents: Sequence[LossChangeAllocation],
        watch: TrialListener,
    ) -> Iterator[tuple[Any, FitResult, Mapping[str, float]]]:
        from loratlas.adapters.attach import attach
        from loratlas.adapters.trained_heads import detach_adapters
        from loratlas.training.loop import fit

        def stepped(_: StepEvent) -> None:
            watch.step(1)

        for index, (member, descent) in enumerate(zip(members, descents, strict=True)):
            if member.out is not None and (last := go_on([member.out])):
                watch.resumed(index * self.steps + last)
            tuned = attach(self.plan, model, seed=member.settings.seed)
            try:
                result = fit(
                    tuned,
                    self.rows,
                    member.settings,
                    out=member.out,
                    resume=member.out is not None,
                    packed=self.packed,
                    on_step=stepped,
                    hooks=member.hooks,
                )
            except BaseException:
                detach_adapters(tuned)
                raise
            yield tuned, result, descent.values()
