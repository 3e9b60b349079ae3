"""What `train` does: from rows to an adapter that PEFT loads, in the order in which things can go wrong.

Everything that can be refused is refused before the output folder is made: settings, folder, rows, placement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.cli import output
from loratlas.cli.evaluate import rows_to_judge, score_all, summary, to_device
from loratlas.cli.folders import adapter_folder, check_out, write_json
from loratlas.errors import DataError, DivergedError, Interrupted, SettingsError

if TYPE_CHECKING:
    from loratlas.data.encode import Encoded
    from loratlas.data.rows import Rows
    from loratlas.placement.plan import Plan
    from loratlas.training.loop import FitResult, StepEvent
    from loratlas.training.settings import Settings

MINE = ("adapter", "checkpoint", "eval", "run.json", "curve.json", "samples.json", "logs")
"""What a run leaves in its folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The options of one `train` command; see ``loratlas train --help``."""

    model: str
    data: str
    out: Path
    placement: str | None
    budget: str | None
    alpha: float | None
    rslora: bool
    allow_unresolved: bool
    adapter: Path | None
    split: str | None
    columns: Mapping[str, str]
    limit: int | None
    loss: str
    max_length: int
    evaluate: str | None
    eval_split: str | None
    samples: int
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
    from loratlas.anatomy.load import load_config
    from loratlas.data.encode import check_positions, encode, load_tokenizer
    from loratlas.study.inputs import model_source, open_model, open_rows

    _check(job)
    source = model_source(job.model)
    tokenizer, config = load_tokenizer(source), load_config(source)

    def prepare(rows: Rows) -> Encoded:
        encoded = encode(rows, tokenizer, max_length=job.max_length, loss=job.loss)
        check_positions(encoded, config)
        output.note(f"{rows.source}: {encoded.report.sentence()}")
        return encoded

    rows = open_rows(job.data, split=job.split, mapping=job.columns, limit=job.limit)
    train = prepare(rows)
    judged = _judged(job)
    test = None if judged is None else prepare(judged)
    plan = None if job.adapter is not None else _plan(job)
    base = open_model(
        job.model, dtype=job.settings.dtype, quantize=job.quantize, base_dropout=job.base_dropout
    )
    # Attached first: the seed then gives the same initialisation on every device.
    model = to_device(_adapted(job, base, plan))
    packed = False if job.base_dropout else None
    with output.Progress("training", total=job.settings.steps or 1, unit="steps") as bar:
        result = _fit(job, model, train, test, packed, bar)
    facts = _finish(job, model, tokenizer, plan, result, test, judged)
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
    check_out(job.out, mine=MINE if job.resume else (), what="run, or --resume to go on with the one there")


def _judged(job: Job) -> Rows | None:
    if job.evaluate is None and job.eval_split is None:
        return None
    return rows_to_judge(job.evaluate or job.data, split=job.eval_split, columns=job.columns, limit=None)


def _plan(job: Job) -> Plan:
    from loratlas.cli.mapping import read_named
    from loratlas.placement.plan import place

    assert job.placement is not None  # _check said so
    return place(
        read_named(job.model),
        job.placement,
        budget=job.budget,
        alpha=job.alpha,
        rslora=job.rslora,
        allow_unresolved=job.allow_unresolved,
    )


def _adapted(job: Job, base: Any, plan: Plan | None) -> Any:
    if plan is not None:
        settings = job.settings
        return plan.attach(base, seed=settings.seed, dropout=settings.dropout, init=settings.init)
    from loratlas.adapters.export import load_adapter

    assert job.adapter is not None  # _check said so
    return load_adapter(base, adapter_folder(job.adapter), trainable=True)


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
    model: Any,
    tokenizer: Any,
    plan: Plan | None,
    result: FitResult,
    test: Encoded | None,
    judged: Rows | None,
) -> dict[str, Any]:
    from loratlas.adapters.export import save_adapter

    facts: dict[str, Any] = {
        "schema": "loratlas.train",
        "version": 1,
        "run": str(job.out),
        "model": job.model,
        "data": job.data,
        "placement": plan.placement if plan else None,
        "trainable": plan.trainable if plan else None,
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
        "stopped_early": result.stopped_early,
        "diverged": result.diverged,
        "eval": None,
        "samples": None,
    }
    adapter = job.out / "adapter"
    save_adapter(
        model, adapter, plan_json=plan.to_json() if plan else None, extra={"settings": asdict(job.settings)}
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
        scores, _, _ = score_all(model, test)
        scores.write(job.out / "eval")
        facts["eval"] = summary(scores)
        if job.samples:
            from loratlas.evaluation.generate import samples

            facts["samples"] = samples(model, tokenizer, judged, limit=job.samples)
            write_json(job.out / "samples.json", facts["samples"])
    write_json(job.out / "run.json", facts)
    return facts


def _show(facts: dict[str, Any]) -> None:
    if facts["packing"] != "packed":
        output.note(f"Padded instead of packed: {facts['packing_reason']}")
    drawn = output.table("run", ("", "right"))
    drawn.add_row("steps", output.count(facts["steps"]))
    drawn.add_row("loss on the last steps", f"{facts['train_nll']:.4f}")
    if facts["eval"]:
        drawn.add_row("evaluation loss", f"{facts['eval']['token_mean_nll']:.4f}")
        drawn.add_row("evaluation perplexity", f"{facts['eval']['perplexity']:.3f}")
    if facts["trainable"]:
        drawn.add_row("trainable parameters", output.count(facts["trainable"]))
    drawn.add_row("tokens per second", output.count(facts["tokens_per_second"]))
    drawn.add_row("counted tokens per second", output.count(facts["labelled_tokens_per_second"]))
    output.show(drawn)
    output.say(f"Adapter: {facts['adapter']}. Load it with:")
    for line in _loading(facts["model"], facts["adapter"]):
        output.say(f"  {line}")


def _loading(model: str, adapter: str) -> list[str]:
    """How to load the adapter, in Python."""
    base, embedded = f'"{model}"', model.startswith("demo:")
    if embedded:
        base = f'base_path("{model}")'
    return [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        *(["from loratlas.demo import base_path"] if embedded else []),
        f"base = AutoModelForCausalLM.from_pretrained({base})",
        f'model = PeftModel.from_pretrained(base, "{adapter}")',
    ]
