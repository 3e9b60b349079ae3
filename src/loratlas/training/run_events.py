"""What a run reports while it goes, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent:
    """One step that was taken.

    Args:
        step: steps done, from 1.
        steps: of the whole run.
        nll: mean loss over the step's counted tokens, nats.
        lr: learning rate used.
        norm: of the gradient, before clipping.
        tokens: trained on since the run began, padding excluded.
        labelled_tokens: of these, counted by the loss.
        tokens_per_second: since this process began training, warm-up steps excluded.
        seconds: of steps since the run began.
        seconds_left: by the latest steps; None before there is a basis.
        evaluation: mean loss on the evaluation rows, if they were just measured.
    """

    step: int
    steps: int
    nll: float
    lr: float
    norm: float
    tokens: int
    labelled_tokens: int
    tokens_per_second: float
    seconds: float
    seconds_left: float | None
    evaluation: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One point of the training curve.

    Args:
        step: steps done.
        nll: mean loss over the counted tokens of the steps since the last point, nats.
        lr: learning rate of the last of them.
        tokens: trained on since the run began.
        seconds: of steps since the run began.
        evaluation: mean loss on the evaluation rows, if they were measured after this step.
    """

    step: int
    nll: float
    lr: float
    tokens: int
    seconds: float
    evaluation: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RateTrial:
    """A learning rate that was tried in the first steps of a run.

    Args:
        rate: the highest of its course.
        steps: that it was tried for.
        nll: mean loss over the later half of these, nats; None where the first one diverged.
        outcome: ``"chosen"``, ``"tried"`` (it led for a while), ``"worse"`` or ``"diverged"``.
    """

    rate: float
    steps: int
    nll: float | None
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RatesTried:
    """How a run came to its learning rate (`loratlas.training.rate_search`).

    Args:
        tried: in rising order of rates.
        chosen: the rate that the run went on with.
        head: steps that a rate was tried for at most.
        set_aside: the price: steps at the other rates.
        reason: why this one, in words.
    """

    tried: list[RateTrial]
    chosen: float
    head: int
    set_aside: int
    reason: str

    def sentence(self) -> str:
        """For people, without its full stop."""
        tried = "; ".join(
            f"{trial.rate:g}: "
            + ("diverged" if trial.nll is None or trial.outcome == "diverged" else f"{trial.nll:.3f}")
            for trial in self.tried
        )
        return f"learning rate {self.chosen:g}, {self.reason} ({tried}); {self.set_aside} steps went to the others"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenStart:
    """How a run that decides it itself began its adapters (`loratlas.training.input_start`).

    Args:
        init: ``"eva"``, along its inputs, or True, as PEFT begins them.
        spread: share of the channels that the inputs' leading directions lie in, of the middle matrix.
    """

    init: str | bool
    spread: float

    def sentence(self) -> str:
        """For people, without its full stop."""
        where = f"which lie in {self.spread:.1%} of the channels (median over matrices)"
        if self.init is True:
            return f"adapters begin as PEFT begins them, not along their inputs, {where}"
        return f"adapters begin along their inputs, {where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """A finished run.

    Args:
        steps: optimiser steps that changed the adapter.
        tokens: trained on, padding excluded.
        labelled_tokens: of these, counted by the loss.
        train_nll: mean loss over the counted tokens of the last tenth of the steps, nats.
        tokens_per_second: padding excluded, after the warm-up steps.
        labelled_tokens_per_second: likewise.
        setup_seconds: from the call to the first step.
        step_seconds: median over the steps after the warm-up steps.
        peak_bytes: largest memory in use by the allocator's own count, see `loratlas.training.step.memory`; None where
            no step was measured (a resumed run that was over, a profiler already running).
        packing: ``"packed"`` or ``"padded"``.
        packing_reason: why.
        compiled: whether the last steps ran compiled layers.
        compile_reason: why, or why not.
        kept_layers: lowest layers whose result was computed once for every row
            (`loratlas.training.step.frozen_prefix`).
        kept_reason: why these, or why none.
        diverged: the loss or its gradient became NaN or infinite, and the run was stopped.
        diverged_at: the step (from 1) whose loss or gradient it was.
        stopped_early: ``early_stop`` ended the run.
        eval_nll: last loss on the evaluation rows within the run, nats.
        lr: highest learning rate, given or decided in the run.
        rates: how it was decided; None where it was given or the run was too short to try any.
        start: how it began its adapters; None where that was not for it to decide.
        curve: the training curve.
    """

    steps: int
    tokens: int
    labelled_tokens: int
    train_nll: float
    tokens_per_second: float
    labelled_tokens_per_second: float
    setup_seconds: float
    step_seconds: float
    peak_bytes: int | None = None
    packing: str = "packed"
    packing_reason: str = ""
    compiled: bool = False
    compile_reason: str = ""
    kept_layers: int = 0
    kept_reason: str = ""
    diverged: bool = False
    diverged_at: int | None = None
    stopped_early: bool = False
    eval_nll: float | None = None
    lr: float = 0.0
    rates: RatesTried | None = None
    start: ChosenStart | None = None
    curve: list[CurvePoint] = field(default_factory=list)
