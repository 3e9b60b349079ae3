"""One placement in one trainer: what happens when, from the first check to the last checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from loratlas.adapters.resize import ranks_of, resize
from loratlas.dynamic.controller import Decision, PlacementController
from loratlas.dynamic.decision_schedule import DecisionSchedule
from loratlas.dynamic.policies.base import Policy
from loratlas.integrations.trainer.controller_state import (
    check_identity,
    check_times,
    checkpoint_asked_for,
    read_state,
    read_tensors,
    write_state,
)
from loratlas.integrations.trainer.movable_sites import budget_of, movable_sites
from loratlas.integrations.trainer.processes import peers_of
from loratlas.integrations.trainer.torch_adam import MovedAdam, check_optimizer, plain_optimizer
from loratlas.integrations.trainer.trainer_checks import trainer_names
from loratlas.integrations.trainer.trainer_run import LastRows, TrainerRun

AGES = "ages."


class Installed:
    """Sees to it that a trainer's steps are watched and its adapters move.

    Gradients are seen where the trainer clips them, or at the optimizer's step where it does not. A decision falls when
    a step is over and gradients are gone, before the step is logged, evaluated and saved.

    Args:
        trainer: that trains.
        policy: decides. schedule: when.
        budget, placement, on_decision: as of `loratlas.DynamicPlacement`.
    """

    def __init__(
        self,
        trainer: Any,
        policy: Policy,
        schedule: DecisionSchedule,
        *,
        budget: str | float | None,
        placement: str,
        on_decision: Callable[[Decision], None],
    ) -> None:
        self.trainer, self.policy, self.schedule = trainer, policy, schedule
        self._on_decision = on_decision
        self._asked = {"placement": placement, "budget": None if budget is None else str(budget)}
        self.sites, self.anatomy = movable_sites(trainer.model, placement)
        self.budget = budget_of(budget, self.sites, self.anatomy, trainer.model, schedule.peak)
        self.peers = peers_of(trainer.accelerator)
        self.controller = self._fresh()
        # A `TrainerRun`; it shows a hook what it needs of a `HookedRun` for moves, and no rows of loratlas's own.
        self.run: Any = None
        self._inputs: list[Any] = []
        self._seen = False
        self._resumed: tuple[Path, dict[str, Any]] | None = None
        if trainer.args.max_steps > 0:
            self.controller.check(trainer.args.max_steps)
        self._patch()

    def _fresh(self) -> PlacementController:
        return PlacementController(
            self.sites,
            self.policy,
            budget=self.budget,
            schedule=self.schedule,
            on_decision=self._heard,
            rows=lambda *_: LastRows(self.trainer, self._inputs, self.peers),
            peers=self.peers,
        )

    def _heard(self, decision: Decision) -> None:
        if self.trainer.is_world_process_zero():
            self._on_decision(decision)

    def _patch(self) -> None:
        trainer = self.trainer
        trainer.add_callback(_callback(self))
        train, step, clip = trainer.train, trainer.training_step, trainer.accelerator.clip_grad_norm_
        load_best = getattr(trainer, "_load_best_model", None)

        def begin(resume_from_checkpoint: Any = None, *args: Any, **options: Any) -> Any:
            folder = checkpoint_asked_for(trainer, resume_from_checkpoint)
            if folder is not None and folder.is_dir():
                self.take_ranks(folder)
            return train(resume_from_checkpoint, *args, **options)

        def take_step(model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
            if self.run is not None and self._due(self.run.counters.done + 1):
                self._inputs.append(dict(inputs))
            return step(model, inputs, *args, **options)

        def clip_gradients(parameters: Any, max_norm: Any, *args: Any, **options: Any) -> Any:
            import torch

            accelerator = trainer.accelerator
            if getattr(accelerator, "scaler", None) is None:
                self.on_gradient()
                return clip(parameters, max_norm, *args, **options)
            # Gradients can be unscaled only once a step, so that what the original does is done here.
            accelerator.unscale_gradients()
            self.on_gradient()
            return torch.nn.utils.clip_grad_norm_(list(parameters), max_norm, *args, **options)

        def load_best_model(*args: Any, **options: Any) -> Any:
            best = trainer.state.best_model_checkpoint
            if best is not None:
                self._give(read_state(Path(best))["ranks"])
            assert load_best is not None
            return load_best(*args, **options)

        trainer.train, trainer.training_step = begin, take_step
        trainer.accelerator.clip_grad_norm_ = clip_gradients
        if load_best is not None:
            trainer._load_best_model = load_best_model

    def _due(self, step: int) -> bool:
        return step in self.controller.schedule.steps(int(self.trainer.state.max_steps))

    def take_ranks(self, folder: Path) -> None:
        """Before a checkpoint is loaded: give the model the ranks that it has there.

        Raises:
            OutputError: it belongs to another run, or is damaged.
        """
        document = read_state(folder)
        check_identity(folder, document, self._identity(), self._asked)
        self._resumed = folder, document
        self._give(document["ranks"])

    def _give(self, ranks: dict[str, int]) -> None:
        """Other ranks, whatever the factors hold: they are loaded next."""
        now = ranks_of(self.trainer.model)
        changed = {path: rank for path, rank in ranks.items() if rank != now.get(path, 0)}
        if not changed:
            return
        before = {name: p for name, p in self.trainer.model.named_parameters() if p.requires_grad}
        resize(self.trainer.model, changed)
        if self.trainer.optimizer is not None:
            after = {name: p for name, p in self.trainer.model.named_parameters() if p.requires_grad}
            adam = MovedAdam(plain_optimizer(self.trainer.optimizer))
            adam.replace(before, after, {})
            adam.detach()

    def _identity(self) -> dict[str, Any]:
        args = self.trainer.args
        return {
            **self.controller.identity(),
            "model": f"{self.anatomy.model_type} {self.anatomy.config_digest}",
            "seed": args.seed,
            "processes": args.world_size,
        }

    def _times(self) -> dict[str, Any]:
        """The run's length, and when it decides."""
        steps = int(self.trainer.state.max_steps)
        return {"steps": steps, "decisions": list(self.controller.schedule.steps(steps))}

    def on_begin(self) -> None:
        """Right before the first step, everything there: the last checks.

        Raises:
            SettingsError: an optimizer whose state cannot be moved; a head longer than the run.
            OutputError: a checkpoint of a run that decides at other steps.
        """
        optimizer = plain_optimizer(self.trainer.optimizer)
        check_optimizer(optimizer)
        self.controller.check(int(self.trainer.state.max_steps))
        if self.run is not None:
            self.run.adam.detach()
        adam = MovedAdam(optimizer)
        self.run, self._seen, self._inputs = TrainerRun(self.trainer, adam, self.peers), False, []
        if self._resumed is None:
            if self.controller.decisions:
                self.controller = self._fresh()
            return
        folder, document = self._resumed
        self._resumed = None
        check_times(folder, document["identity"], self._identity() | self._times())
        tensors = read_tensors(folder)
        named = self.run.named()
        adam.ages = {
            named[name.removeprefix(AGES)]: age.to(named[name.removeprefix(AGES)].device)
            for name, age in tensors.items()
            if name.startswith(AGES)
        }
        self.run.observe()
        self.controller.load_state(self.run, tensors, document["values"])

    def on_gradient(self) -> None:
        """The step's gradient is whole."""
        run = self.run
        if run is None or self._seen:
            return
        self._seen = True
        # Where the scaler is about to skip a step there is nothing to be learnt from it.
        if run.observe():
            self.controller.on_gradient(run)

    def on_step_end(self) -> None:
        """The step is counted and gradients are gone."""
        run = self.run
        self._seen = False
        run.counters.done = int(self.trainer.state.global_step)
        run.masters.observe()
        event: Any = SimpleNamespace(step=run.counters.done)
        self.controller.after_step(run, event)
        self._inputs = []

    def on_save(self) -> None:
        """A checkpoint was written: add what belongs to it."""
        if self.run is None or not self.trainer.args.should_save:
            return
        folder = Path(self.trainer.args.output_dir) / f"checkpoint-{self.trainer.state.global_step}"
        if not folder.is_dir():
            return
        tensors, values = self.controller.state()
        ages = self.run.adam.ages
        tensors |= {f"{AGES}{name}": ages[p] for name, p in self.run.named().items() if p in ages}
        write_state(
            folder,
            identity=self._identity() | self._times(),
            asked=self._asked,
            ranks={site.module: rank for site, rank in self._ranks()},
            values=values,
            tensors=tensors,
        )

    def _ranks(self) -> list[tuple[Any, int]]:
        ranks = self.controller.ranks(self.trainer.model)
        return [(site, ranks[site.path]) for site in self.sites]


def _callback(installed: Installed) -> Any:
    """Transformers' callback that says when steps begin, end and are saved."""
    from transformers import TrainerCallback

    class _Moving(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            with trainer_names():
                installed.on_begin()

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            installed.on_gradient()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            installed.on_step_end()

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            installed.on_save()

    return _Moving()
