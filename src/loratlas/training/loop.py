"""One run: order, micro-batches, loss, clipping, update, checkpoint, and an honest end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loratlas.adapters.lean_lora import lean
from loratlas.data.batching import training_order
from loratlas.errors import DataError, Interrupted, SettingsError
from loratlas.training.checkpoint import Checkpoints
from loratlas.training.compilation import Compilation
from loratlas.training.early_stopping import EarlyStopping
from loratlas.training.frozen_prefix import Prefix, prefix_for
from loratlas.training.master_weights import MasterWeights
from loratlas.training.memory import Peak, kept_pages
from loratlas.training.microbatches import microbatches
from loratlas.training.optimizer import Optimizer
from loratlas.training.run_context import dropout_stream, interruptible, training_mode
from loratlas.training.run_counters import RunCounters
from loratlas.training.run_events import FitResult, StepEvent
from loratlas.training.settings import Settings
from loratlas.training.step import step_loss
from loratlas.training.trackers import reporters

if TYPE_CHECKING:
    from loratlas.data.examples import Encoded


def fit(
    model: Any,
    data: Encoded,
    settings: Settings,
    *,
    evaluate: Encoded | None = None,
    out: Path | None = None,
    resume: bool = False,
    on_step: Callable[[StepEvent], None] | None = None,
    on_gradient: Callable[[MasterWeights], None] | None = None,
    packed: bool | None = None,
) -> FitResult:
    """Train whatever of a model requires a gradient.

    A step's loss is the summed loss of all its counted tokens over their number, however it is cut into
    micro-batches (law 0). A run that is killed anywhere and resumed equals the run that was not (law 5).

    Args:
        model: a `PeftModel` on its device; its adapter is float32 when this returns, and holds the last state, the
            best one under ``early_stop``, or the last good one if the run diverged.
        data: encoded rows.
        settings: of the run.
        evaluate: rows to measure the loss on within the run, as ``settings.evaluate_every`` says.
        out: folder for checkpoints (``checkpoint/``) and logs (``logs/``); None writes nothing.
        resume: go on from the checkpoint in ``out``; without one the run begins at the beginning.
        on_step: told about every step, in order.
        on_gradient: shown the masters of every step, in order, when their gradient is whole and before it is clipped
            and spent; it may read them, not change them.
        packed: whether batches are packed; None decides by ``settings.packing`` and the model's own proof.

    Returns:
        What was trained, how fast, and how it ended. A loss or gradient that is NaN or infinite ends the run with
        ``diverged`` set; it is no exception, for a study records it.

    Raises:
        SettingsError: settings that contradict the model or each other.
        DataError: no examples.
        OutputError: the checkpoint belongs to another run.
        StorageError: the disk is full or not writable; the last whole checkpoint stays.
        Interrupted: Ctrl-C; the state is saved if there is a folder.
    """
    begun = time.perf_counter()
    run = Run(model, data, settings, evaluate=evaluate, out=out, packed=packed)
    run.on_gradient = on_gradient
    with ExitStack() as stack:
        stack.enter_context(training_mode(model, checkpointing=settings.checkpointing))
        stack.enter_context(lean(model))
        stack.enter_context(kept_pages())
        stream = stack.enter_context(dropout_stream(settings.seed))
        stop = stack.enter_context(interruptible())
        run.masters.open()
        stack.callback(run.masters.close)
        if resume:
            run.load_state()
        run.prefix = run.find_prefix()
        report = stack.enter_context(reporters(settings, model, out, steps=run.steps))
        compilation = stack.enter_context(run.compilation.run())
        peak = run.peak()
        try:
            for _ in (
                run.prefix.fill(run.order[run.counters.done :].reshape(-1)) if run.prefix is not None else ()
            ):
                if stop.asked:
                    raise KeyboardInterrupt
            setup = time.perf_counter() - begun
            while not run.finished:
                stream(run.counters.done)
                with peak.watch(run.counters.done):
                    try:
                        event = run.step()
                    except RuntimeError as error:
                        compilation.failed(error)
                        event = run.step()
                if event is None:
                    break
                compilation.stepped(run.counters.done, *run.counters.last_step)
                report(event)
                if on_step is not None:
                    on_step(event)
                if stop.asked:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise run.interrupted() from None
        run.save()
        return run.result(setup, peak.bytes(run.lasting()))


class Run:
    """The state between two steps; arguments are those of `fit`."""

    def __init__(
        self,
        model: Any,
        data: Encoded,
        settings: Settings,
        *,
        evaluate: Encoded | None,
        out: Path | None,
        packed: bool | None,
    ) -> None:
        self.model, self.data, self.settings, self.evaluate = model, data, settings, evaluate
        self._check()
        self.device = model.get_input_embeddings().weight.device
        self.steps = settings.steps_for(len(data))
        self.packed, self.reason = _packing(model, data, settings, packed)
        self.order = training_order(
            len(data),
            steps=self.steps,
            batch_size=settings.batch_size,
            seed=settings.seed,
            subset=settings.subset,
        )
        self.masters = MasterWeights(model, loraplus=settings.loraplus)
        self._check_dtype()
        self.optimizer = Optimizer(self.masters, settings, steps=self.steps)
        self.counters = RunCounters(steps=self.steps, log_every=settings.log_every)
        self.compilation = Compilation(
            model,
            settings.compile,
            steps=self.steps,
            dtype=settings.dtype,
            dropout=bool(settings.dropout),
        )
        self.early_stopping = EarlyStopping(settings, steps=self.steps)
        self.diverged_at: int | None = None
        self.prefix: Prefix | None = None
        self.on_gradient: Callable[[MasterWeights], None] | None = None
        self.kept_before: int | None = None  # layers below it, of the process that wrote the checkpoint
        self.before = 0.0  # seconds of a step that passed before it was asked for (in a fleet)
        self._updating = False
        self._previous = self.masters.copy()
        self.checkpoints = Checkpoints(out, identity=self._identity()) if out is not None else None

    def _check(self) -> None:
        if not len(self.data):
            raise DataError(
                given=self.data.source, found="no examples to train on", instead="rows with an answer"
            )
        if not any(p.requires_grad for p in self.model.parameters()):
            raise SettingsError(
                given="a model to train",
                found="no parameter that requires a gradient",
                instead="a model that a plan was attached to",
            )
        if self.settings.early_stop is not None and self.evaluate is None:
            raise SettingsError(
                given=f"early_stop = {self.settings.early_stop}",
                found="no rows to evaluate on",
                instead="evaluation rows beside it (--eval), or no early stop",
            )

    def _check_dtype(self) -> None:
        found = str(self.masters.dtype).removeprefix("torch.")
        if found != self.settings.dtype:
            raise SettingsError(
                given=f"dtype = {self.settings.dtype!r}",
                found=f"a model loaded in {found}",
                instead=f"load_model(…, dtype={self.settings.dtype!r}), or dtype={found!r} in the settings",
            )

    def _identity(self) -> dict[str, Any]:
        return {
            "settings": {
                k: v for k, v in self.settings.to_json().items() if k not in ("save_every", "report_to")
            },
            "steps": self.steps,
            "data": self.data.digest,
            "packed": self.packed,
            "parameters": {name: list(view.shape) for name, view in self.masters.named()},
        }

    @property
    def finished(self) -> bool:
        return self.counters.done >= self.steps or self.early_stopping.over or self.diverged_at is not None

    def step(self) -> StepEvent | None:
        """One step; None if it diverged."""
        begun = time.perf_counter()
        step = self.counters.done
        nll, labelled, tokens = self._gradient(self.order[step])
        norm = float(self.masters.norm())
        if not (math.isfinite(nll) and math.isfinite(norm)):
            self._diverge(finite_loss=math.isfinite(nll))
            return None
        if self.on_gradient is not None:
            self.on_gradient(self.masters)
        self._updating = True
        for kept, group in zip(self._previous, self.masters.groups, strict=True):
            kept.copy_(group.master)
        lr = self.optimizer.update(step, norm)
        seconds = time.perf_counter() - begun + self.before
        event = self.counters.add(
            nll=nll, labelled=labelled, tokens=tokens, seconds=seconds, lr=lr, norm=norm
        )
        self._updating = False
        if self.evaluate is not None and self.early_stopping.due(self.counters.done):
            loss = self._evaluate(self.evaluate)
            event = replace(event, evaluation=loss)
        if self.counters.done % self.settings.save_every == 0 and not self.finished:
            self.save()
        return event

    def _gradient(self, rows: np.ndarray) -> tuple[float, int, int]:
        """Gradient of the step's mean loss in the masters; (summed loss, counted tokens, tokens)."""
        batches = list(
            microbatches(self.data, rows.tolist(), packed=self.packed, size=self.settings.micro_batch)
        )
        labelled = sum(batch.labelled for batch in batches)
        if not labelled:
            raise DataError(
                given=self.data.source, found="a step without a counted token", instead="rows with an answer"
            )
        self.masters.zero()
        losses = []
        for batch in batches:
            batch = batch.to(self.device)
            with self.prefix.within(batch) if self.prefix is not None else nullcontext():
                loss = step_loss(self.model, batch)
            # Law 0: the step's own count divides, not the micro-batch's.
            (loss / labelled).backward()
            self.masters.collect()
            losses.append(loss.detach())
        return sum(float(loss) for loss in losses), labelled, sum(batch.tokens for batch in batches)

    def _diverge(self, *, finite_loss: bool) -> None:
        """Stop, and keep the last state whose loss was finite: if this one's is not, the one before its update."""
        self.diverged_at = self.counters.done + 1
        if not finite_loss:
            self.masters.restore(self._previous)

    def _evaluate(self, rows: Encoded) -> float:
        from loratlas.evaluation.score import score

        loss = score(self.model, rows, packed=self.packed).token_mean_nll
        self.early_stopping.update(loss, self.masters)
        if self.counters.curve and self.counters.curve[-1].step == self.counters.done:
            self.counters.curve[-1] = replace(self.counters.curve[-1], evaluation=loss)
        return loss

    def save(self) -> None:
        """Write a checkpoint, if there is a folder."""
        if self.checkpoints is None:
            return
        tensors = {f"adapter.{name}": view for name, view in self.masters.named()}
        tensors |= {f"moments.{name}": value for name, value in self.optimizer.state().items()}
        tensors |= {f"previous.{place}": kept for place, kept in enumerate(self._previous)}
        tensors |= {f"best.{place}": kept for place, kept in enumerate(self.early_stopping.best)}
        state = {
            "tally": self.counters.to_json(),
            "patience": self.early_stopping.to_json(),
            "diverged_at": self.diverged_at,
            "unproven_prefix": self.prefix.depth if self.prefix is not None else 0,
        }
        self.checkpoints.save(self.counters.done, tensors, state)

    def load_state(self) -> None:
        """Continue from the last checkpoint, if there is one."""
        found = self.checkpoints.load() if self.checkpoints is not None else None
        if found is None:
            return
        tensors, state = found
        for name, view in self.masters.named():
            view.copy_(tensors[f"adapter.{name}"])
        self.masters.round()

        def part(prefix: str) -> dict[str, Any]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.counters.load_state(state["tally"])
        self.optimizer.load(part("moments."), self.counters.done)
        for place, kept in enumerate(self._previous):
            kept.copy_(tensors[f"previous.{place}"])
        best = part("best.")
        self.early_stopping.load_state(
            state["patience"], [best[str(place)].to(self.device) for place in range(len(best))]
        )
        self.diverged_at = state["diverged_at"]
        self.kept_before = state.get("unproven_prefix", 0)

    def find_prefix(self) -> Prefix | None:
        """The frozen layers below the lowest adapter, if their states are worth keeping.

        A run goes on as it began, whether memory allows it now or not: kept states are rounded in their own batches.
        """
        if not self.packed or self.kept_before == 0:
            return None
        return prefix_for(self.model, self.data, self.order, whatever_memory=bool(self.kept_before))

    def interrupted(self) -> Interrupted:
        """Save what can be saved; the error to raise."""
        found = f"training stopped after step {self.counters.done} of {self.steps}"
        if self.checkpoints is None:
            return Interrupted(
                given="Ctrl-C", found=found, instead="an output folder, so that a run can go on later"
            )
        if not self._updating:
            self.save()
        return Interrupted(
            given="Ctrl-C",
            found=f"{found}; its state is in {self.checkpoints.folder}",
            instead="the same command with --resume to go on from there",
        )

    def peak(self) -> Peak:
        """The watch over the steps to come."""
        lengths = np.array([len(example) for example in self.data.examples])
        return Peak(self.device, lengths[self.order[self.counters.done :]].sum(1), first=self.counters.done)

    def lasting(self) -> list[Any]:
        """Tensors that live through all steps."""
        model = [*self.model.parameters(), *self.model.buffers()]
        kept = self.prefix.lasting() if self.prefix is not None else []
        return [*model, *self.masters.lasting(), *self.optimizer.state().values(), *self._previous, *kept]

    def result(self, setup: float, peak_bytes: int | None) -> FitResult:
        """The end of the run."""
        self.early_stopping.restore_best(self.masters)
        tokens, labelled = self.counters.speed()
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
            packing_reason=self.reason,
            compiled=self.compilation.on,
            compile_reason=self.compilation.reason,
            kept_layers=self.prefix.depth if self.prefix is not None else 0,
            diverged=self.diverged_at is not None,
            diverged_at=self.diverged_at,
            stopped_early=self.early_stopping.over and self.counters.done < self.steps,
            eval_nll=self.early_stopping.last,
            curve=self.counters.curve,
        )


def _packing(model: Any, data: Encoded, settings: Settings, packed: bool | None) -> tuple[bool, str]:
    """Whether to pack, and why."""
    if packed is not None:
        return packed, "decided by the caller"
    if settings.packing == "off":
        return False, "as asked"
    if data.task.why_padded is not None:
        if settings.packing == "on":
            raise SettingsError(
                given="packing = 'on'", found=data.task.why_padded, instead="packing = 'auto'"
            )
        return False, data.task.why_padded
    from loratlas.data.packing import prove_packing

    with lean(model):  # the code that will train
        proof = prove_packing(model, max_length=max(len(example) for example in data.examples))
    if settings.packing == "on" and not proof.exact:
        raise SettingsError(
            given="packing = 'on'",
            found=f"this model does not allow it: {proof.reason}",
            instead="packing = 'auto'",
        )
    return proof.exact, proof.reason
