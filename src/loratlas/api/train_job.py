"""The steps of a training job, from what was asked for to the run's folder.

Everything that can be refused is refused before the output folder is made: settings, folder, rows, placement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.adapters.stored.run_files import RUN, write_run_json
from loratlas.api.checks import check_head, rows_to_judge
from loratlas.api.folders import adapter_folder, check_out
from loratlas.api.listener import Bar, Listener, known
from loratlas.api.moving_placement import check_moving, note_record
from loratlas.api.place_model import check_scores, placed
from loratlas.dynamic.moving_plan import Moving, Start, start
from loratlas.dynamic.policies.known_policies import DEFAULT
from loratlas.errors import DataError, DivergedError, Interrupted, SettingsError
from loratlas.files import write_json
from loratlas.sources import DEMO, data_name, model_name
from loratlas.training.settings import AUTO

if TYPE_CHECKING:
    from loratlas.anatomy.sites import Anatomy
    from loratlas.cost.peak_memory import PeakMemory
    from loratlas.data.examples import Encoded
    from loratlas.data.rows import Rows
    from loratlas.dynamic.controller import PlacementController
    from loratlas.models.task import Task
    from loratlas.placement.plan import Plan
    from loratlas.training.loop import FitResult, StepEvent
    from loratlas.training.run_events import ChosenStart
    from loratlas.training.settings import Settings

PLAN = "plan.json"
"""Where a run that has placed its adapters itself keeps where they ended."""

MINE = ("adapter", "checkpoint", "eval", RUN, "curve.json", "samples.json", "logs", PLAN, "report.html")
"""What a run leaves in its folder, and what `loratlas report` writes there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What `train` was asked for, by the names of its arguments."""

    model: Any
    data: Any
    out: Path
    placement: str | None
    budget: str | None
    scores: Path | None
    by: str | None
    alpha: float | None
    rslora: bool
    dora: bool
    round_ranks: bool
    allow_unresolved: bool
    adapter: Path | None
    split: str | None
    columns: Mapping[str, str]
    limit: int | None
    task: str | None
    loss: str
    max_length: int
    evaluate: Any
    eval_split: str | None
    samples: int
    rouge: bool
    forgetting: str | None
    settings: Settings
    moving: Moving
    tokenizer: Any
    quantize: str | None
    base_dropout: bool
    resume: bool


def check_job(job: Job) -> None:
    """Refuse what cannot be done, before anything is read or written."""
    if (job.placement is None) == (job.adapter is None):
        raise SettingsError(
            given="--placement and --from together" if job.placement else "neither --placement nor --from",
            found="a run trains a new adapter at a placement, or continues one that has its own",
            instead="--placement all:16, or --from ADAPTER",
        )
    if job.adapter is not None:
        adapter_folder(job.adapter)
        brought = {
            "--budget": job.budget,
            "--scores": job.scores,
            "--alpha": job.alpha,
            "--rslora": job.rslora,
            "--dora": job.dora,
            "--round-ranks": job.round_ranks,
            "--init": job.settings.init is not True,
            "--dropout": job.settings.dropout,
        }
        given = [name for name, value in brought.items() if value]
        if given:
            raise SettingsError(
                given=f"{given[0]} with --from",
                found="the adapter brings its ranks, scales and dropout along",
                instead=f"no {given[0]}, or --placement instead of --from",
            )
    if job.settings.early_stop is not None and job.evaluate is None and job.eval_split is None:
        raise SettingsError(
            given="--early-stop without --eval", found="no rows to measure on", instead="--eval DATA"
        )
    if job.samples and job.evaluate is None and job.eval_split is None:
        raise DataError(given="--samples without --eval", found="no rows to answer", instead="--eval DATA")
    check_scores(job.placement, job.scores)
    if places_itself(job):
        if job.by is not None:
            raise SettingsError(
                given=f"--by {job.by} without --scores",
                found="a column of a scan, and no scan",
                instead=f"--signal {DEFAULT}, or --scores FILE with what a scan has measured",
            )
        if job.round_ranks:
            raise SettingsError(
                given="--round-ranks with --placement auto",
                found="a run that changes ranks as it goes",
                instead="no --round-ranks, or --scores FILE with what a scan has measured",
            )
        if job.dora:
            raise SettingsError(
                given="--dora with --placement auto",
                found="a run that changes ranks as it goes, and DoRA's lengths belong to ranks that stay",
                instead="no --dora, or a placement in words, such as all:16",
            )
        check_moving(job.moving, job.settings)
    elif job.moving != Moving.read(None, None, None):
        raise SettingsError(
            given=f"--signal, --head or --decide with --placement {job.placement}"
            if job.scores is None
            else "--signal, --head or --decide with --scores",
            found="a placement that stays as it is",
            instead="--placement auto",
        )
    check_out(job.out, mine=MINE if job.resume else (), what="run, or --resume to continue the one there")


def rows_to_evaluate(job: Job) -> Rows | None:
    """The rows that the loss is measured on at the end; None where none were named."""
    if job.evaluate is None and job.eval_split is None:
        return None
    embedded = isinstance(job.evaluate, str) and job.evaluate.startswith(DEMO)
    columns = {} if embedded else job.columns  # they are those of DATA
    return rows_to_judge(job.evaluate or job.data, split=job.eval_split, columns=columns, limit=None)


def places_itself(job: Job) -> bool:
    """Whether the run decides about its placement, in its first steps."""
    from loratlas.scan.plan_from_scores import is_auto

    return is_auto(job.placement) and job.scores is None


def with_start(job: Job) -> Job:
    """The same, with how its adapters begin where that was left open: a run that places them itself decides it."""
    if job.settings.init is not None:
        return job
    return replace(job, settings=replace(job.settings, init=AUTO if places_itself(job) else True))


def note_rate(job: Job, *, width: int, examples: int, listener: Listener) -> None:
    """Say how the run comes to its learning rate and what that costs, where none was given.

    Raises:
        SettingsError: several rates, and a run too short to try two.
    """
    from loratlas.training.rate_search import RateSearch, rate_search

    chosen = rate_search(job.settings, width=width, steps=job.settings.steps_for(examples))
    if isinstance(chosen, RateSearch):
        listener.note(f"learning rate: {chosen.sentence()}")
    elif chosen is not None:
        listener.note(
            f"learning rate {chosen.rate:g}, chosen {chosen.reason}; the run is too short to try others; "
            "--lr sets another, --samples shows what it does to the answers"
        )


def loss_before(model: Any, test: Encoded) -> float | None:
    """The loss before the first step; None of a classifier whose head is still random."""
    from loratlas.adapters.trained_heads import untrained
    from loratlas.loss_audit.judge import judge

    if test.task.labels and untrained(model):
        return None
    numbers, _ = judge(model, test)
    return numbers["mean_nll" if test.task.labels else "token_mean_nll"]


def plan_of(job: Job, anatomy: Anatomy, memory: PeakMemory, listener: Listener) -> Plan:
    """The plan that the run trains, of a placement in words or by a scan's file."""
    assert job.placement is not None  # check_job said so
    return placed(
        anatomy,
        job.placement,
        scores=job.scores,
        by=job.by,
        budget=job.budget,
        alpha=job.alpha,
        rslora=job.rslora,
        dora=job.dora,
        memory=memory,
        allow_unresolved=job.allow_unresolved,
        round_ranks=job.round_ranks,
        listener=listener,
    )


def start_of(job: Job, anatomy: Anatomy, memory: PeakMemory) -> Start:
    """The plan that a run which places its adapters itself begins with."""
    return start(
        job.moving,
        anatomy,
        budget=job.budget,
        alpha=job.alpha,
        rslora=job.rslora,
        allow_unresolved=job.allow_unresolved,
        memory=memory,
    )


def adapted_base(job: Job, base: Any, plan: Plan | None) -> Any:
    """The base with its adapters."""
    if plan is not None:
        settings = job.settings
        return plan.attach(base, seed=settings.seed, dropout=settings.dropout, init=settings.drawn)
    from loratlas.adapters.stored.load_adapter import load_adapter

    assert job.adapter is not None  # check_job said so
    return check_head(load_adapter(base, adapter_folder(job.adapter), trainable=True), job.adapter)


def fit_job(
    job: Job,
    model: Any,
    train: Encoded,
    test: Encoded | None,
    packed: bool | None,
    bar: Bar,
    hook: PlacementController | None,
    listener: Listener,
) -> FitResult:
    """Train, with progress on a bar."""
    from loratlas.training.loop import fit

    def on_trial(rate: float, event: StepEvent) -> None:
        bar.total = event.steps
        bar.to(event.step, f"at learning rate {rate:g}: loss {event.nll:.4f}", left=known(event.seconds_left))

    def on_step(event: StepEvent) -> None:
        bar.total = event.steps
        bar.to(
            event.step,
            f"loss {event.nll:.4f}, {event.tokens_per_second:,.0f} tokens/s",
            left=known(event.seconds_left),
        )

    def on_start(decided: ChosenStart) -> None:
        listener.note(decided.sentence())
        if hook is not None:
            note_record(job.moving, decided.init, listener)

    try:
        result = fit(
            model,
            train,
            job.settings,
            evaluate=test,
            out=job.out,
            resume=job.resume,
            on_step=on_step,
            hooks=() if hook is None else (hook,),
            on_trial=on_trial,
            on_start=on_start,
            packed=packed,
            asked={"model": model_name(job.model), "placement": job.placement, "budget": job.budget},
        )
    except Interrupted as stopped:
        raise Interrupted(
            given=stopped.given, found=stopped.found, instead="the same command with --resume"
        ) from None
    if result.rates is not None:
        listener.note(result.rates.sentence())
    return result


def finish(
    job: Job,
    task: Task,
    model: Any,
    tokenizer: Any,
    plan: Plan | None,
    result: FitResult,
    test: Encoded | None,
    judged: Rows | None,
    before: float | None,
    other: Encoded | None,
    hook: PlacementController | None,
    rows_digest: str,
) -> dict[str, Any]:
    """Write the run's folder, and collect what was measured."""
    from loratlas.adapters.stored.adapter_files import save_adapter
    from loratlas.adapters.trained_heads import head_size

    settings = asdict(job.settings) | {"lr": result.lr}
    numbers: dict[str, Any] = {
        "schema": "loratlas.train",
        "version": 1,
        "run": str(job.out),
        "model": model_name(job.model),
        "data": data_name(job.data),
        "rows_digest": rows_digest,
        "placement": plan.placement if plan else None,
        "trainable": plan.trainable if plan else None,
        "moves": [] if hook is None else [move.to_json() for move in hook.moves],
        "decisions": [] if hook is None else [decision.to_json() for decision in hook.decisions],
        "head": head_size(model),
        "task": task.to_json(),
        "pad_id": model.config.get_text_config().pad_token_id,
        "from": str(job.adapter) if job.adapter else None,
        "settings": settings,
        "rates": None if result.rates is None else asdict(result.rates),
        "start": None if result.start is None else asdict(result.start),
        "steps": result.steps,
        "tokens": result.tokens,
        "labelled_tokens": result.labelled_tokens,
        "train_nll": result.train_nll,
        "tokens_per_second": result.tokens_per_second,
        "labelled_tokens_per_second": result.labelled_tokens_per_second,
        "setup_seconds": result.setup_seconds,
        "step_seconds": result.step_seconds,
        "peak_bytes": result.peak_bytes,
        "packing": result.packing,
        "packing_reason": result.packing_reason,
        "kept_layers": result.kept_layers,
        "compiled": result.compiled,
        "compile_reason": result.compile_reason,
        "stopped_early": result.stopped_early,
        "diverged": result.diverged,
        "eval": None,
        "loss_before": before,
        "samples": None,
        "forgetting": None,
    }
    adapter = job.out / "adapter"
    # It is written last and holds the digests of the others: what stands there now would speak of another run.
    (job.out / RUN).unlink(missing_ok=True)
    save_adapter(
        model,
        adapter,
        plan_json=plan.to_json() if plan else None,
        extra={
            "settings": settings,
            "task": task.to_json(),
            "pad_id": numbers["pad_id"],
        },
    )
    numbers["adapter"] = str(adapter)
    if hook is not None and plan is not None:
        write_json(job.out / PLAN, plan.to_json())
    write_json(job.out / "curve.json", [asdict(point) for point in result.curve])
    if result.diverged:
        write_run_json(job.out, numbers)
        raise DivergedError(
            given=f"--lr {result.lr:g}",
            found=f"the loss became NaN or infinite at step {result.diverged_at}; the last good state is in {adapter}",
            instead="a lower --lr, a longer --warmup, or --dtype float32",
        )
    if test is not None and judged is not None:
        from loratlas.loss_audit.judge import judge

        numbers["eval"], _ = judge(model, test, job.out / "eval")
        if job.samples:
            from loratlas.evaluation.generate import samples

            numbers["samples"] = samples(
                model, tokenizer, judged, limit=job.samples, rouge=job.rouge, compare=True
            )
            write_json(job.out / "samples.json", numbers["samples"])
    if other is not None:
        from loratlas.evaluation.forgetting import measure_forgetting

        packed = result.packing == "packed"
        numbers["forgetting"] = {"source": job.forgetting, **measure_forgetting(model, other, packed=packed)}
    write_run_json(job.out, numbers)
    return numbers
