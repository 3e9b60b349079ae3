"""Training one run by itself: `fit`, from the first check to an honest end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.adapters.layers.lean_lora import lean
from loratlas.anatomy.config_sizes import sizes
from loratlas.errors import SettingsError
from loratlas.interruption import interruptible
from loratlas.training.checkpoint import describe_base
from loratlas.training.input_start import begin
from loratlas.training.master_weights import MasterWeights
from loratlas.training.rate_search import RateSearch, rate_search
from loratlas.training.run import RunState
from loratlas.training.run_events import ChosenStart, FitResult, StepEvent
from loratlas.training.run_hooks import RunHook
from loratlas.training.settings import Settings
from loratlas.training.site_rates import site_rate_hooks
from loratlas.training.step.gradients import ModelGradients, no_examples
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
    on_trial: Callable[[float, StepEvent], None] | None = None,
    on_start: Callable[[ChosenStart], None] | None = None,
    hooks: Sequence[RunHook] = (),
    packed: bool | None = None,
    asked: Mapping[str, str | None] | None = None,
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
        on_step: called after every step, in order.
        on_trial: called with a learning rate and a step that was taken at it, before one is chosen; the chosen one's
            steps are then reported to ``on_step``.
        on_start: called before the first step where the run has decided itself how its adapters begin.
        hooks: take part in every step (`loratlas.training.run_hooks.RunHook`); their state is in the checkpoint.
        packed: whether batches are packed; None decides by ``settings.packing`` and the model's own proof.
        asked: what was typed for the run, of :class:`loratlas.training.checkpoint.Checkpoints`.

    Returns:
        What was trained, how fast, and how it ended. A loss, gradient or weight that is NaN or infinite ends the run
        with ``diverged`` set; it is no exception, for a study records it.

    Raises:
        SettingsError: settings that contradict the model or each other.
        DataError: no examples.
        OutputError: the checkpoint belongs to another run.
        StorageError: the disk is full or not writable; the last whole checkpoint stays.
        Interrupted: Ctrl-C or SIGTERM; the state is saved if there is a folder.
    """
    begun = time.perf_counter()
    if not len(data):
        raise no_examples(data)
    packed, reason = _packing(model, data, settings, packed)
    steps = settings.steps_for(len(data))
    start = begin(model, data, settings, packed=packed, steps=steps)  # a resumed run overwrites it
    if start is not None and on_start is not None:
        on_start(start)
    masters = MasterWeights(model, loraplus=settings.loraplus)
    hooks = (*site_rate_hooks(settings, steps), *hooks)
    search = rate_search(settings, width=sizes(model.config).hidden, steps=steps)
    if isinstance(search, RateSearch):
        search.check(hooks, steps)
        settings, hooks = replace(settings, lr=search.first), (*hooks, search)
    elif search is not None:
        settings = replace(settings, lr=search.rate)
    gradients = ModelGradients(model, data, masters, settings, packed=packed, steps=steps)
    run = RunState(
        model,
        data,
        settings,
        gradients,
        packed=packed,
        packing_reason=reason,
        base=lambda: describe_base(model),
        evaluate=evaluate,
        out=out,
        hooks=hooks,
        asked=asked,
    )
    with ExitStack() as stack:
        stack.enter_context(gradients.open())
        stop = stack.enter_context(interruptible())
        if resume:
            run.load_state()
        try:
            for _ in gradients.prepare(run.order, run.counters.done):
                stop.check()
            stack.enter_context(gradients.compiling())
            setup = time.perf_counter() - begun
            trained: list[StepEvent] = []
            if isinstance(search, RateSearch):
                trained = search.decide(run, check=stop.check, on_step=on_trial)
            report = stack.enter_context(reporters(settings, model, out, steps=run.steps))
            peak = run.peak()
            for event in trained:
                report(event)
                if on_step is not None:
                    on_step(event)
            while not run.finished:
                with peak.watch(run.counters.done):
                    event = run.step()
                if event is None:
                    break
                report(event)
                if on_step is not None:
                    on_step(event)
                stop.check()
        except KeyboardInterrupt:
            raise run.interrupted(stop.by) from None
        run.refuse_non_finite()
        run.save()
        if stop.requested:  # after the last step: what follows a run's steps can be done later
            raise run.interrupted(stop.by)
        rates = search.result() if isinstance(search, RateSearch) else None
        return replace(run.result(setup, peak.bytes(run.lasting())), start=start, rates=rates)


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
    from loratlas.data.batches.packing_proof import prove_packing

    with lean(model):  # the code that will train
        proof = prove_packing(model, max_length=max(len(example) for example in data.examples))
    if settings.packing == "on" and not proof.exact:
        raise SettingsError(
            given="packing = 'on'",
            found=f"this model does not allow it: {proof.reason}",
            instead="packing = 'auto'",
        )
    return proof.exact, proof.reason
