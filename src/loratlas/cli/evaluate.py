"""`eval`: the loss of a model on rows, every definition of it, and why they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loratlas import formats
from loratlas.cli import options, output
from loratlas.cli.folders import adapter_folder, check_out, check_tokenizer
from loratlas.cli.judging import adapter_task, check_head, check_samples, judge, show_classes, summary, told
from loratlas.errors import Interrupted, SettingsError
from loratlas.modeling import unwrap

if TYPE_CHECKING:
    from loratlas.cli.passes import Pass, Subject
    from loratlas.data.examples import Encoded
    from loratlas.data.rows import Rows
    from loratlas.loss_audit.definitions import Definition


class Also(StrEnum):
    """Conditions of a forward pass that tools run a model under, beside the one that loratlas judges with."""

    dropout = "dropout"
    bfloat16 = "bfloat16"
    float32 = "float32"
    adapter_off = "adapter-off"
    filled_right = "filled-right"
    filled_left = "filled-left"
    shifted = "shifted-twice"


def evaluate(
    model: options.Model,
    data: options.Data,
    adapter: Annotated[
        Path | None,
        typer.Option(
            "--adapter",
            metavar="DIR",
            help="A PEFT adapter, or the --out folder of `loratlas train`.",
            rich_help_panel=options.PLACE,
        ),
    ] = None,
    split: options.Split = None,
    columns: options.Columns = None,
    limit: options.Limit = None,
    task: options.TaskOption = None,
    loss: options.LossOver = options.Loss.answer,
    max_length: options.MaxLength = 512,
    dtype: options.DtypeOption = options.Dtype.auto,
    quantize: options.QuantizeOption = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            min=1,
            help="Also tell the mean of batches of so many rows, as trainers do; may be repeated. 8 unless given.",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    smoothing: Annotated[
        list[float] | None,
        typer.Option(
            "--smoothing",
            metavar="SHARE",
            min=0.0,
            max=1.0,
            help="Also tell the loss with this label smoothing; may be repeated.",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    also: Annotated[
        list[Also] | None,
        typer.Option(
            "--also",
            metavar="WAY",
            help="Also run the model so, and tell the loss that this gives; may be repeated: "
            + ", ".join(way.value for way in Also)
            + ".",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            "--window",
            metavar="TOKENS",
            min=2,
            help="Also tell the loss in windows of so many tokens.",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            "--stride",
            metavar="TOKENS",
            min=1,
            help="How far windows advance; by their length unless given.",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    samples: options.Samples = 0,
    rouge: options.Rouge = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Also write every example's and every token's loss there, as Parquet.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Measure the loss of a model, with or without an adapter.

    The loss is the mean over all counted tokens; perplexity is its exponential. Neither depends on how rows are
    packed or batched. Every other definition that tools print is told beside it, each with the exact terms that take
    the loss there. A classifier is told by its accuracy and macro F1 as well.
    """
    from loratlas.cli.passes import scores_of, subject, workspace
    from loratlas.data.encode import load_tokenizer
    from loratlas.data.task_examples import encode_for
    from loratlas.evaluation.parquet import write_examples
    from loratlas.loss_audit.catalogue import BATCH_SIZES, catalogue
    from loratlas.loss_audit.definitions import REFERENCE, Evidence
    from loratlas.loss_audit.resumable_table import FOLDER
    from loratlas.loss_audit.text_units import texts_of
    from loratlas.sources import model_source, open_model, open_task

    if stride is not None and window is None:
        raise SettingsError(given="--stride without --window", found="nothing to advance", instead="--window")
    folder = adapter_folder(adapter) if adapter is not None else None
    check_out(out, mine=(FOLDER,))
    source = model_source(model)
    tokenizer = load_tokenizer(source)
    remark = check_tokenizer(folder, tokenizer) if folder is not None else None
    rows = rows_to_judge(data, split=split, columns=options.columns_of(columns), limit=limit)
    name = None if task is None else task.value
    chosen_task, config = open_task(source, rows, tokenizer, asked=name, known=adapter_task(folder))
    check_samples(chosen_task, samples=samples, rouge=rouge)
    if config is not None:
        _only_causal(chosen_task.name, also=also, smoothing=smoothing, window=window)
    encoded = encode_for(
        chosen_task, rows, tokenizer, config=config or source, max_length=max_length, loss=loss.value
    )
    output.remark(rows)
    if not as_json:
        output.note(encoded.report.sentence())
    base = open_model(model, dtype=dtype.chosen, quantize=quantize.value if quantize else None, config=config)
    if folder is not None:
        from loratlas.adapters.adapter_files import load_adapter

        base = load_adapter(base, folder)
    base = to_device(check_head(base, folder))
    about = {
        "schema": "loratlas.eval",
        "version": 1,
        "model": model,
        "adapter": None if adapter is None else str(adapter),
        "task": chosen_task.to_json(),
        "data": {"source": rows.source, "digest": rows.digest, **_report(encoded)},
        "remark": remark,
        "out": None if out is None else str(out),
    }
    if config is not None:
        answers = _answers(base, tokenizer, rows, samples, rouge)
        facts, chosen = judge(base, encoded, out)
        if as_json:
            output.emit({**about, "packed": False, **facts, "samples": answers})
            return
        _show_task(facts, chosen, answers, remark, out)
        return
    of, reason = subject(base, rows, encoded, tokenizer)
    plan = wanted(
        of, also or (), dtype=dtype.chosen, adapted=folder is not None, window=window, stride=stride,
        sizes=batch_size or BATCH_SIZES,
    )  # fmt: skip
    answers = _answers(base, tokenizer, rows, samples, rouge)
    with workspace(out) as place:
        try:
            table = of.table(place, uniform=bool(smoothing), bounds=out is not None)
        except KeyboardInterrupt:
            raise _stopped(out) from None
        scores = scores_of(table)
        if out is not None:
            write_examples(out, example=scores.example, n=scores.n, nll=scores.nll)
    tables = {REFERENCE: table}
    with workspace(None) as place:
        for one in plan:
            output.note(f"Once more {one.words}")
            tables[one.name] = one.take(of, place / one.name, max_length=max_length)
    sizes = batch_size or BATCH_SIZES
    evidence = Evidence(tables=tables, texts=texts_of(encoded, rows, tokenizer))
    chosen = catalogue(
        evidence,
        batch_sizes=sizes,
        smoothing=smoothing or (),
        regularisers={name.replace(" ", "_"): size for name, size in of.regularisers(sizes).items()},
    )
    facts = summary(scores, evidence, chosen)
    if as_json:
        output.emit(
            {
                **about,
                "packed": of.packed,
                **facts,
                "about": {d.name: {"formula": d.formula, "used_by": d.used_by} for d in chosen},
                "samples": answers,
            }
        )
        return
    if reason:
        output.note(f"Padded instead of packed: {reason}")
    if remark:
        output.note(remark)
    _show(facts, chosen)
    _say_answers(answers)
    if out is not None:
        output.say(f"Losses of every example and token: {out / 'examples.parquet'}, {out / 'tokens.parquet'}")


def _only_causal(task: str, **given: Any) -> None:
    """Refuse what only a causal language model can be asked."""
    for name, value in given.items():
        if value:
            raise SettingsError(
                given=f"--{name} in a {task} task",
                found="conditions and definitions for texts that are read token by token",
                instead=f"no --{name}",
            )


def _answers(model: Any, tokenizer: Any, rows: Rows, limit: int, rouge: bool) -> dict[str, Any] | None:
    from loratlas.evaluation.generate import samples

    return samples(model, tokenizer, rows, limit=limit, rouge=rouge) if limit else None


def _say_answers(answers: Mapping[str, Any] | None) -> None:
    for name, value in told(answers) if answers else ():
        output.say(f"{name}: {value}")


def _show_task(
    facts: dict[str, Any],
    chosen: Sequence[Definition],
    answers: Mapping[str, Any] | None,
    remark: str | None,
    out: Path | None,
) -> None:
    if remark:
        output.note(remark)
    if "classes" in facts:
        show_classes(facts)
    else:
        _show(facts, chosen)
    _say_answers(answers)
    if out is not None:
        more = "predictions" if "classes" in facts else "tokens"
        output.say(f"Losses of every example, and its {more}: {out}")


def _stopped(out: Path | None) -> Interrupted:
    if out is None:
        return Interrupted(
            given="Ctrl-C",
            found="the pass was stopped before its end",
            instead="--out DIR, so that the same command can go on later",
        )
    return Interrupted(
        given="Ctrl-C",
        found=f"the pass was stopped; the rows that were finished are kept in {out}",
        instead="the same command, to go on from there",
    )


def wanted(
    of: Subject,
    also: Sequence[Also],
    *,
    dtype: str,
    adapted: bool,
    sizes: Sequence[int],
    window: int | None,
    stride: int | None,
) -> list[Pass]:
    """The passes that were asked for.

    Raises:
        SettingsError: one that this model has no use for.
    """
    from loratlas.cli.passes import further

    names = {Also.shifted: "ahead"}
    plan = {
        one.name: one
        for one in further(of, dtype=dtype, adapted=adapted, sizes=sizes, window=window, stride=stride)
    }
    found = [plan["windows"]] if window is not None else []
    for each in dict.fromkeys(also):
        name = names.get(each, each.name)
        if name not in plan:
            why = {
                Also.dropout: "a model without dropout",
                Also.adapter_off: "no adapter to switch off",
            }.get(each, f"a model that computes in {dtype} already")
            raise SettingsError(given=f"--also {each.value}", found=why, instead="the command without it")
        found.append(plan[name])
    return found


def rows_to_judge(data: str, *, split: str | None, columns: Mapping[str, str], limit: int | None) -> Rows:
    """Rows to measure a loss on: of an embedded task those for evaluation, unless a split is named."""
    from loratlas.sources import DEMO, open_rows

    chosen = "eval" if split is None and data.startswith(DEMO) else split
    return open_rows(data, split=chosen, mapping=columns, limit=limit)


def to_device(model: Any) -> Any:
    """Move a model to the GPU, if there is one; a quantised base is there already."""
    import torch

    inner = unwrap(model)
    if torch.cuda.is_available() and not getattr(inner, "is_quantized", False):
        return model.to("cuda")
    return model


def _report(encoded: Encoded) -> dict[str, int]:
    from dataclasses import asdict

    return asdict(encoded.report)


def _show(facts: dict[str, Any], chosen: Sequence[Definition]) -> None:
    output.say(
        f"loss {facts['token_mean_nll']:.4f} nats per token, perplexity {facts['perplexity']:.3f} "
        f"({formats.count(facts['labelled_tokens'])} tokens of {formats.count(facts['examples'])} examples)"
    )
    drawn = output.table("definition", ("value", "right"), "told by")
    for definition in chosen:
        value = facts["definitions"][definition.name]
        drawn.add_row(definition.name.replace("_", " "), _number(value), definition.used_by)
    output.show(drawn)
    if facts["gaps"]:
        drawn = output.table("why they differ", ("nats", "right"))
        for gap in facts["gaps"]:
            start, end = (gap[side].replace("_", " ") for side in ("from", "to"))
            words = gap["term"] if "→" in gap["term"] else f"{start} → {end}: {gap['term']}"
            if "estimate" in gap:
                words += f" (to second order {gap['estimate']:+.4f})"
            drawn.add_row(words, f"{gap['nats']:+.6f}")
        drawn.add_row("left unexplained", f"{facts['residual']:+.1e}")
        output.show(drawn)


def _number(value: float) -> str:
    return f"{value:,.4f}" if abs(value) < 1e9 else f"{value:.4e}"
