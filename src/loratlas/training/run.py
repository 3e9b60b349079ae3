"""The state of one run between two steps: what it has counted, learnt and kept, and one step further."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loratlas.adapters.adam_moments import Moments
from loratlas.data.batches.batching import training_order
from loratlas.errors import Interrupted, SettingsError
from loratlas.modeling import device_of
from loratlas.training.checkpoint import Checkpoints, SaveSchedule
from loratlas.training.early_stopping import EarlyStopping
from loratlas.training.optimizer import Optimizer
from loratlas.training.run_counters import RunCounters
from loratlas.training.run_events import FitResult, StepEvent
from loratlas.training.run_hooks import RunHook
from loratlas.training.settings import Settings
from loratlas.training.step.gradients import GradientSource, no_examples
from loratlas.training.step.memory import PeakMeter

if TYPE_CHECKING:
    from loratlas.data.examples import Encoded


class RunState:
    """One run. It asks ``gradients`` for the gradient of every step and does everything else.

    Args:
        model: a `PeftModel` or, in a fleet, the bare base; what is evaluated.
        data: encoded rows.
        settings: of the run.
        gradients: where each step's gradient comes from; its master weights are the run's.
        packed: whether batches are packed.
        packing_reason: why.
        base: what the run stands on besides settings and rows (`loratlas.training.checkpoint.describe_base`); only
            asked for where there is a folder.
        evaluate: rows to measure the loss on within the run.
        out: folder for checkpoints; None writes none.
        hooks: take part in every step, in this order.
        asked: what was typed for the run, for its checkpoints to say.

    Attributes:
        order: rows of every step, [steps, batch size].
        masters: weights that are trained, with their gradients.
        optimizer: steps on them.
        counters: steps done, losses, tokens, seconds.
        set_aside: steps that were taken besides these, at learning rates that did not go on.

    Raises:
        SettingsError: settings that contradict the model or each other.
        DataError: no examples.
    """

    def __init__(
        self,
        model: Any,
        data: Encoded,
        settings: Settings,
        gradients: GradientSource,
        *,
        packed: bool,
        packing_reason: str,
        base: Callable[[], Mapping[str, Any]],
        evaluate: Encoded | None = None,
        out: Path | None = None,
        hooks: Sequence[RunHook] = (),
        asked: Mapping[str, str | None] | None = None,
    ) -> None:
        self.model, self.data, self.settings = model, data, settings
        self.gradients, self.masters, self.hooks = gradients, gradients.masters, tuple(hooks)
        self.evaluate = evaluate
        self.packed, self._packing_reason = packed, packing_reason
        self._check()
        self.device = device_of(model)
        self.steps = settings.steps_for(len(data))
        self.order = training_order(
            len(data),
            steps=self.steps,
            batch_size=settings.batch_size,
            seed=settings.seed,
            subset=settings.subset,
        )
        self.optimizer = Optimizer(self.masters, settings, steps=self.steps)
        self.counters = RunCounters(steps=self.steps, log_every=settings.log_every)
        self.early_stopping = EarlyStopping(settings, steps=self.steps)
        self.diverged_at: int | None = None
        self.set_aside = 0
        self._updating = False
        self._previous = self.masters.copy()
        self._save_schedule = SaveSchedule(settings.save_every, settings.save_seconds)
        identity = None if out is None else self._identity() | {"base": dict(base())}
        self.checkpoints = None if out is None else Checkpoints(out, identity=identity or {}, asked=asked)

    def _check(self) -> None:
        if not len(self.data):
            raise no_examples(self.data)
        if self.settings.early_stop is not None and self.evaluate is None:
            raise SettingsError(
                given=f"early_stop = {self.settings.early_stop}",
                found="no rows to evaluate on",
                instead="evaluation rows (--eval), or no early stop",
            )
        dtype = str(self.masters.dtype).removeprefix("torch.")
        if dtype != self.settings.dtype:
            raise SettingsError(
                given=f"dtype = {self.settings.dtype!r}",
                found=f"a model loaded in {dtype}",
                instead=f"load_model(…, dtype={self.settings.dtype!r}), or dtype={dtype!r} in the settings",
            )
        names = [hook.name for hook in self.hooks]
        if len(set(names)) < len(names):
            raise SettingsError(
                given=f"hooks named {names}",
                found="two of one name, whose states a checkpoint could not distinguish",
                instead="a name for each",
            )

    def _identity(self) -> dict[str, Any]:
        # How often a run is saved and to whom it reports change nothing of it.
        free = ("save_every", "save_seconds", "report_to")
        identity: dict[str, Any] = {
            "settings": {k: v for k, v in self.settings.to_json().items() if k not in free},
            "steps": self.steps,
            "data": self.data.digest,
            "packed": self.packed,
            "parameters": {name: list(view.shape) for name, view in self.masters.named()},
        }
        hooks = {hook.name: hook.identity() for hook in self.hooks}
        return identity | ({"hooks": hooks} if hooks else {})

    @property
    def finished(self) -> bool:
        """Whether no step is left to be taken."""
        return self.counters.done >= self.steps or self.early_stopping.over or self.diverged_at is not None

    def step(self) -> StepEvent | None:
        """One step; None if it diverged."""
        step = self.counters.done
        gradient = self.gradients.gradient(step, self.order[step])
        begun = time.perf_counter()
        norm = float(self.masters.norm())
        if not (math.isfinite(gradient.nll) and math.isfinite(norm)):
            self._diverge(finite_loss=math.isfinite(gradient.nll))
            return None
        for hook in self.hooks:
            hook.on_gradient(self)
        self._updating = True
        for kept, group in zip(self._previous, self.masters.groups, strict=True):
            kept.copy_(group.master)
        lr = self.optimizer.update(step, norm)
        event = self.counters.add(
            nll=gradient.nll,
            labelled=gradient.labelled,
            tokens=gradient.tokens,
            seconds=gradient.seconds + time.perf_counter() - begun,
            lr=lr,
            norm=norm,
        )
        if self.evaluate is not None and self.early_stopping.due(self.counters.done):
            event = replace(event, evaluation=self._evaluate(self.evaluate))
        for hook in self.hooks:
            hook.after_step(self, event)
        self._updating = False
        if self._save_schedule.due(self.counters.done) and not self.finished:
            self.save()
        return event

    def _diverge(self, *, finite_loss: bool) -> None:
        """Stop, and keep the last state whose loss was finite: if this one's is not, the one before its update."""
        self.diverged_at = self.counters.done + 1
        if not finite_loss:
            self.masters.restore(self._previous)

    def refuse_non_finite(self) -> None:
        """After the last update nothing else would show that it made numbers that are none: such a run diverged, and
        keeps the weights from before that update."""
        if self.diverged_at is None and self.counters.done and not self.masters.finite():
            self.diverged_at = self.counters.done
            self.masters.restore(self._previous)

    def _evaluate(self, rows: Encoded) -> float:
        from loratlas.evaluation.score import score

        loss = score(self.model, rows, packed=self.packed).token_mean_nll
        self.early_stopping.update(loss, self.masters)
        curve = self.counters.curve
        if curve and curve[-1].step == self.counters.done:
            curve[-1] = replace(curve[-1], evaluation=loss)
        return loss

    def change_parameters(self, change: Callable[[], Mapping[str, Moments] | None]) -> None:
        """Let a hook change which parameters the model trains, or their shapes, between two steps.

        Parameters that keep their name and shape keep weights and moments. The state before the last update, which a
        run that diverges falls back to, is from now on the changed one, and so is the best one under early stopping:
        weights of another layout could not be put back.

        Args:
            change: called while the model holds float32 weights of its own; changes the model in place. It returns the
                moments of parameters that are new or have another shape, by name; those it leaves out begin at 0,
                0 steps old.

        Raises:
            SettingsError: gradients that come from elsewhere (a fleet) cannot follow.
        """
        if self.gradients.fixed is not None:
            raise SettingsError(
                given="a change of what a run trains",
                found=self.gradients.fixed,
                instead="this run by itself",
            )
        moments = self.optimizer.moments()
        shapes = {name: view.shape for name, view in self.masters.named()}
        self.masters.close()
        try:
            brought = change() or {}
        finally:
            self.masters.rebuild()
            self.masters.open()
        kept = {
            name: moments[name]
            for name, view in self.masters.named()
            if name in moments and shapes[name] == view.shape and name not in brought
        }
        self.optimizer.rebuild({**kept, **brought}, self.counters.done)
        self._previous = self.masters.copy()
        self.early_stopping.forget_best()
        self.gradients.parameters_changed()

    def set_rate(self, lr: float) -> None:
        """Go on with another highest learning rate; its course over the steps stays."""
        self.settings = self.optimizer.settings = replace(self.settings, lr=lr)

    def state(self, *, without: RunHook | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Everything that decides how the run goes on: tensors, which are the run's own, and plain data.

        Args:
            without: a hook that is left out.
        """
        tensors = {f"adapter.{name}": view for name, view in self.masters.named()}
        tensors |= {f"moments.{name}": value for name, value in self.optimizer.state().items()}
        tensors |= {f"previous.{index}": kept for index, kept in enumerate(self._previous)}
        tensors |= {f"best.{index}": kept for index, kept in enumerate(self.early_stopping.best)}
        state = {
            "tally": self.counters.to_json(),
            "patience": self.early_stopping.to_json(),
            "diverged_at": self.diverged_at,
            "hooks": {},
            **self.gradients.state(),
        }
        for hook in self.hooks:
            if hook is not without:
                more, state["hooks"][hook.name] = hook.state()
                tensors |= {f"hook.{hook.name}.{name}": tensor for name, tensor in more.items()}
        return tensors, state

    def restore(
        self, tensors: Mapping[str, Any], state: Mapping[str, Any], *, without: RunHook | None = None
    ) -> None:
        """Go on from what `state` gave; ``tensors`` are copied from."""

        def under(prefix: str) -> dict[str, Any]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.counters.load_state(state["tally"])
        for hook in self.hooks:
            if hook is not without:
                hook.load_state(self, under(f"hook.{hook.name}."), state["hooks"].get(hook.name, {}))
        for name, view in self.masters.named():
            view.copy_(tensors[f"adapter.{name}"])
        self.masters.round()
        self.optimizer.load(under("moments."), self.counters.done)
        for index, kept in enumerate(self._previous):
            kept.copy_(tensors[f"previous.{index}"])
        best = under("best.")
        self.early_stopping.load_state(
            state["patience"], [best[str(index)].to(self.device, copy=True) for index in range(len(best))]
        )
        self.diverged_at = state["diverged_at"]

    def save(self) -> None:
        """Write a checkpoint, if there is a folder."""
        if self.checkpoints is not None:
            # All steps that were taken count, so that of two checkpoints the later one has the higher number.
            self.checkpoints.save(self.counters.done + self.set_aside, *self.state())
            self._save_schedule.saved()

    def load_state(self) -> bool:
        """Continue from the last checkpoint; False where there is none, and the run begins at the beginning."""
        loaded = self.checkpoints.load() if self.checkpoints is not None else None
        if loaded is None:
            return False
        self.restore(*loaded)
        self.gradients.load_state(loaded[1])
        return True

    def interrupted(self, by: str) -> Interrupted:
        """Save what can be saved; the error to raise.

        Args:
            by: what asked for an end, such as Ctrl-C.
        """
        reason = f"training stopped after step {self.counters.done} of {self.steps}"
        if self.checkpoints is None:
            return Interrupted(
                given=by, found=reason, instead="an output folder, so that a run can be resumed"
            )
        if not self._updating:
            self.save()
        return Interrupted(
            given=by,
            found=f"{reason}; its state is in {self.checkpoints.folder}",
            instead="the same command with --resume",
        )

    def peak(self, *, measured: bool = True) -> PeakMeter:
        """The watch over the steps to come.

        Args:
            measured: whether some of them are recorded on a CPU.
        """
        lengths = np.array([len(example) for example in self.data.examples])
        done = self.counters.done
        steps = self.order[done:] if measured else self.order[:0]
        return PeakMeter(self.device, lengths[steps].sum(1), first=done)

    def lasting(self) -> list[Any]:
        """Tensors that live through all steps."""
        model = [*self.model.parameters(), *self.model.buffers(), *self.gradients.lasting()]
        return [*model, *self.masters.lasting(), *self.optimizer.state().values(), *self._previous]

    def result(self, setup: float, peak_bytes: int | None) -> FitResult:
        """The end of the run."""
        self.early_stopping.restore_best(self.masters)
        tokens, labelled = self.counters.speed()
        prefix = self.gradients.prefix
        compiled, why = self.gradients.compilation
        return FitResult(
            steps=self.counters.done,
            tokens=self.counters.tokens,
            labelled_tokens=self.counters.labelled,
            train_nll=self.counters.train_nll,
            tokens_per_second=tokens,
            labelled_tokens_per_second=labelled,
            setup_seconds=setup,
            step_seconds=self.counters.step_seconds(),
            peak_bytes=peak_bytes,
            packing="packed" if self.packed else "padded",
            packing_reason=self._packing_reason,
            compiled=compiled,
            compile_reason=why,
            kept_layers=prefix.depth if prefix is not None else 0,
            kept_reason=self.gradients.prefix_reason,
            diverged=self.diverged_at is not None,
            diverged_at=self.diverged_at,
            stopped_early=self.early_stopping.over and self.counters.done < self.steps,
            eval_nll=self.early_stopping.last,
            lr=self.settings.peak_lr,
            curve=self.counters.curve,
        )
