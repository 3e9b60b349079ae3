"""What `train` does: from rows to an adapter that PEFT loads, in the order in which things can go wrong.

Everything that can be refused is refused before the output folder is made: settings, folder, rows, placement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas import formats
from loratlas.cli import output
from loratlas.cli.evaluation_inputs import rows_to_judge, to_device
from loratlas.cli.folders import adapter_folder, check_out
from loratlas.cli.judging import adapter_task, check_head, check_samples, headline, sample_scores
from loratlas.cli.mapping import check_scores, read_named
from loratlas.errors import DataError, DivergedError, Interrupted, SettingsError
from loratlas.files import write_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from loratlas.anatomy.sites import Anatomy
    from loratlas.cost.dry_run import PeakMemory
    from loratlas.data.examples import Encoded
    from loratlas.data.rows import Rows
    from loratlas.models.task import Task
    from loratlas.placement.plan import Plan
    from loratlas.training.loop import FitResult, StepEvent
    from loratlas.training.settings import Settings

PLAN = "plan.json"
"""Where a run whose placement was found by a scan keeps it."""

MINE = ("adapter", "checkpoint", "eval", "run.json", "curve.json", "samples.json", "logs", PLAN)
"""What a run leaves in its folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The options of one `train` command; see ``loratlas train --help``."""

    model: str
    data: str
    out: Path
    placement: str | None
    budget: str | None
    scores: Path | None
    by: str | None
    alpha: float | None
    rslora: bool
    allow_unresolved: bool
    adapter: Path | None
    split: str | None
    columns: Mapping[str, str]
    limit: int | None
    task: str | None
    loss: str
    max_length: int
    evaluate: str | None
    eval_split: str | None
    samples: int
    rouge: bool
    settings: Settings
    quantize: str | None
    base_dropout: bool
    resume: bool


def go(job: Job, *, as_json: bool) -> None:
    """Do the run, write its folder and say what came out.

    Raises:
        RequestError: something in the options cannot be done; nothing was written.
        DivergedError: the loss became NaN or infinite; the last good adapter was written.
        Interrupted: Ctrl-C; the state was saved.
    """
    from loratlas.data.encode import load_tokenizer
    from loratlas.data.task_examples import encode_for
    from loratlas.models.config import load_config
    from loratlas.sources import model_source, open_model, open_rows, open_task

    _check(job)
    source = model_source(job.model)
    tokenizer = load_tokenizer(source)
    rows = open_rows(job.data, split=job.split, mapping=job.columns, limit=job.limit)
    known = adapter_task(job.adapter, source)
    task, config = open_task(source, rows, tokenizer, asked=job.task, known=known)

    def prepare(rows: Rows) -> Encoded:
        encoded = encode_for(
            task, rows, tokenizer, config=config or source, max_length=job.max_length, loss=job.loss
        )
        output.remark(rows)
        output.note(f"{rows.source}: {encoded.report.sentence()}")
        return encoded

    if _scans(job) and task.name != "causal":
        raise SettingsError(
            given=f"--placement auto for {task.name}",
            found="signals are measured on causal language models",
            instead="a placement in words, such as all:8",
        )
    train = prepare(rows)
    judged = _judged(job)
    check_samples(task, samples=job.samples, rouge=job.rouge)
    test = None if judged is None else prepare(judged)
    plan: Plan | None = None
    anatomy, memory = None, None
    if job.adapter is None:
        anatomy = read_named(job.model, config)
        memory = _memory(job, config or load_config(source), anatomy, train)
        plan = None if _scans(job) else _plan(job, anatomy, memory)
    base = open_model(
        job.model,
        dtype=job.settings.dtype,
        quantize=job.quantize,
        base_dropout=job.base_dropout,
        config=config,
    )
    if anatomy is not None and memory is not None and plan is None:
        plan = _scanned(job, anatomy, base, train, memory)
    # Attached first: the seed then gives the same initialisation on every device.
    model = to_device(_adapted(job, base, plan))
    packed = False if job.base_dropout else None
    with output.Progress("training", total=job.settings.steps or 1, unit="steps") as bar:
        result = _fit(job, model, train, test, packed, bar)
    facts = _finish(job, task, model, tokenizer, plan, result, test, judged)
    if as_json:
        output.emit(facts)
    else:
        _show(facts)


def _check(job: Job) -> None:
    if (job.placement is None) == (job.adapter is None):
        raise SettingsError(
            given="--placement and --from together" if job.placement else "neither --placement nor --from",
            found="a run trains a new adapter at a placement, or goes on with one that has its own",
            instead="--placement all:16, or --from ADAPTER",
        )
    if job.adapter is not None:
        adapter_folder(job.adapter)
        brought = {
            "--budget": job.budget,
            "--scores": job.scores,
            "--alpha": job.alpha,
            "--rslora": job.rslora,
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
    if job.resume and not job.out.is_dir():
        raise SettingsError(
            given=f"--resume with --out {job.out}",
            found="no such folder",
            instead="the folder of the stopped run",
        )
    check_scores(job.placement, job.scores)
    check_out(job.out, mine=MINE if job.resume else (), what="run, or --resume to go on with the one there")


def _judged(job: Job) -> Rows | None:
    if job.evaluate is None and job.eval_split is None:
        return None
    return rows_to_judge(job.evaluate or job.data, split=job.eval_split, columns=job.columns, limit=None)


def _scans(job: Job) -> bool:
    """Whether the placement is to be found by a scan of this run's own rows."""
    from loratlas.scan.plan_from_scores import is_auto

    return is_auto(job.placement) and job.scores is None and not job.resume


def _memory(job: Job, config: PretrainedConfig, anatomy: Anatomy, train: Encoded) -> PeakMemory:
    """The measure of a memory budget: a typical step of this run."""
    from loratlas.cost.dry_run import PeakMemory, typical

    settings = job.settings
    together = min(settings.micro_batch or settings.batch_size, settings.batch_size)
    return PeakMemory(config, anatomy, typical(train.examples, together), settings)


def _plan(job: Job, anatomy: Anatomy, memory: PeakMemory) -> Plan:
    from loratlas.cli.mapping import placed
    from loratlas.scan.plan_from_scores import is_auto

    assert job.placement is not None  # _check said so
    if job.resume and is_auto(job.placement):
        return _kept(job.out)
    return placed(
        anatomy,
        job.placement,
        scores=job.scores,
        by=job.by,
        budget=job.budget,
        alpha=job.alpha,
        rslora=job.rslora,
        memory=memory,
        allow_unresolved=job.allow_unresolved,
    )


def _scanned(job: Job, anatomy: Anatomy, base: Any, train: Encoded, memory: PeakMemory) -> Plan:
    """Find where adapters help most on this run's rows, and keep the plan for a resumed run."""
    from loratlas.cli.scan import show_progress
    from loratlas.scan.advice import DECIDES, track_record
    from loratlas.scan.plan_from_scores import LIKE, check_budget, plan_from
    from loratlas.scan.run_scan import scan

    check_budget(anatomy, job.budget or LIKE)
    with output.Progress("scanning", total=1, unit="steps") as bar:
        scanned = scan(
            to_device(base),
            anatomy,
            train,
            by=job.by or DECIDES,
            seed=job.settings.seed,
            on_event=show_progress(bar),
        )
    plan, _ = plan_from(
        scanned, anatomy, budget=job.budget, alpha=job.alpha, rslora=job.rslora, memory=memory
    )
    for remark in scanned.notes():
        output.note(remark)
    output.note(
        f"auto: {plan.trainable:,} parameters at {len(plan.rows)} sites by {scanned.by}, from {scanned.rows:,} rows "
        f"({scanned.cost_in_steps:.1f} training steps): {plan.placement}"
    )
    output.note(track_record(scanned.by))
    job.out.mkdir(parents=True, exist_ok=True)
    write_json(job.out / PLAN, plan.to_json())
    return plan


def _kept(out: Path) -> Plan:
    import json

    from loratlas.placement.plan import Plan

    try:
        return Plan.from_json(json.loads((out / PLAN).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise SettingsError(
            given=f"--resume with --placement auto and --out {out}",
            found=f"no {PLAN} in it that can be read",
            instead="the folder of the stopped run, or the command without --resume",
        ) from error


def _adapted(job: Job, base: Any, plan: Plan | None) -> Any:
    if plan is not None:
        settings = job.settings
        return plan.attach(base, seed=settings.seed, dropout=settings.dropout, init=settings.init)
    from loratlas.adapters.load_adapter import load_adapter

    assert job.adapter is not None  # _check said so
    return check_head(load_adapter(base, adapter_folder(job.adapter), trainable=True), job.adapter)


def _fit(
    job: Job, model: Any, train: Encoded, test: Encoded | None, packed: bool | None, bar: output.Progress
) -> FitResult:
    from loratlas.training.loop import fit

    def on_step(event: StepEvent) -> None:
        bar.total = event.steps
        bar.to(
            event.step,
            f"loss {event.nll:.4f}, {event.tokens_per_second:,.0f} tokens/s",
            left=event.seconds_left,
        )

    try:
        return fit(
            model,
            train,
            job.settings,
            evaluate=test,
            out=job.out,
            resume=job.resume,
            on_step=on_step,
            packed=packed,
        )
    except Interrupted as stopped:
        raise Interrupted(
            given=stopped.given, found=stopped.found, instead="the same command with --resume"
        ) from None


def _finish(
    job: Job,
    task: Task,
    model: Any,
    tokenizer: Any,
    plan: Plan | None,
    result: FitResult,
    test: Encoded | None,
    judged: Rows | None,
) -> dict[str, Any]:
    from loratlas.adapters.adapter_files import save_adapter
    from loratlas.adapters.trained_heads import head_size

    facts: dict[str, Any] = {
        "schema": "loratlas.train",
        "version": 1,
        "run": str(job.out),
        "model": job.model,
        "data": job.data,
        "placement": plan.placement if plan else None,
        "trainable": plan.trainable if plan else None,
        "head": head_size(model),
        "task": task.to_json(),
        "pad_id": model.config.get_text_config().pad_token_id,
        "from": str(job.adapter) if job.adapter else None,
        "settings": asdict(job.settings),
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
        "samples": None,
    }
    adapter = job.out / "adapter"
    save_adapter(
        model,
        adapter,
        plan_json=plan.to_json() if plan else None,
        extra={
            "settings": asdict(job.settings),
            "task": task.to_json(),
            "pad_id": facts["pad_id"],
        },
    )
    facts["adapter"] = str(adapter)
    write_json(job.out / "curve.json", [asdict(point) for point in result.curve])
    if result.diverged:
        write_json(job.out / "run.json", facts)
        raise DivergedError(
            given=f"--lr {job.settings.lr:g}",
            found=f"the loss became NaN or infinite at step {result.diverged_at}; the last good state is in {adapter}",
            instead="a lower --lr, a longer --warmup, or --dtype float32",
        )
    if test is not None and judged is not None:
        from loratlas.loss_audit.judge import judge

        facts["eval"], _ = judge(model, test, job.out / "eval")
        if job.samples:
            from loratlas.evaluation.generate import samples

            facts["samples"] = samples(
                model, tokenizer, judged, limit=job.samples, rouge=job.rouge, compare=True
            )
            write_json(job.out / "samples.json", facts["samples"])
    write_json(job.out / "run.json", facts)
    return facts


def _show(facts: dict[str, Any]) -> None:
    if facts["packing"] != "packed" and facts["task"]["name"] == "causal":
        output.note(f"Padded instead of packed: {facts['packing_reason']}")
    reason = facts["compile_reason"]
    output.note(f"torch.compile: {reason}")
    drawn = output.table("run", ("", "right"))
    drawn.add_row("steps", formats.count(facts["steps"]))
    drawn.add_row("loss on the last steps", f"{facts['train_nll']:.4f}")
    for name, value in headline(facts["eval"]) if facts["eval"] else ():
        drawn.add_row(f"evaluation {name}", value)
    if facts["samples"]:
        for name, value in sample_scores(facts["samples"]):
            drawn.add_row(name, value)
    if facts["trainable"]:
        drawn.add_row("trainable parameters", formats.count(facts["trainable"]))
    if facts["head"]:
        drawn.add_row("and the head, trained whole", formats.count(facts["head"]))
    drawn.add_row("tokens per second", formats.count(facts["tokens_per_second"]))
    drawn.add_row("counted tokens per second", formats.count(facts["labelled_tokens_per_second"]))
    output.show(drawn)
    output.say(f"Adapter: {facts['adapter']}. Load it with:")
    for line in _loading(facts):
        output.say(f"  {line}")


_AUTO = {
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "classification": "AutoModelForSequenceClassification",
}


def _loading(facts: Mapping[str, Any]) -> list[str]:
    """How to load the adapter, in Python."""
    model, adapter, task = facts["model"], facts["adapter"], facts["task"]
    auto, more = _AUTO[task["name"]], ""
    if "id2label" in task:
        labels = {int(place): label for place, label in task["id2label"].items()}
        more = f", id2label={labels}, pad_token_id={facts['pad_id']}"
    base, embedded = f'"{model}"', model.startswith("demo:")
    if embedded:
        base = f'base_path("{model}")'
    return [
        "from peft import PeftModel",
        f"from transformers import {auto}",
        *(["from loratlas.demo import base_path"] if embedded else []),
        f"base = {auto}.from_pretrained({base}{more})",
        f'model = PeftModel.from_pretrained(base, "{adapter}")',
    ]
