"""`eval`: the loss of a model on rows; every definition of it and why they differ, on request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loratlas.cli import options, output
from loratlas.cli.evaluation_inputs import check_result_folder, rows_to_judge, to_device, watch, workspace
from loratlas.cli.evaluation_tables import show_definitions, show_loss
from loratlas.cli.folders import adapter_folder, check_tokenizer
from loratlas.cli.judging import (
    adapter_task,
    check_head,
    check_samples,
    choose_dtype,
    sample_scores,
    show_classes,
    show_samples,
    trained_dtype,
)
from loratlas.errors import Interrupted, SettingsError

if TYPE_CHECKING:
    from loratlas.data.examples import Encoded
    from loratlas.data.rows import Rows
    from loratlas.loss_audit.audit_passes import Pass, Subject
    from loratlas.loss_audit.definitions import Definition
    from loratlas.models.task import Task


class Also(StrEnum):
    """Conditions of a forward pass that tools run a model under, besides the one that loratlas evaluates with."""

    dropout = "dropout"
    bfloat16 = "bfloat16"
    float32 = "float32"
    adapter_off = "adapter-off"
    padded_right = "padded-right"
    padded_left = "padded-left"
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
    definitions: Annotated[
        bool,
        typer.Option(
            "--definitions",
            help="Also print every definition of the loss that tools use, and what each differs by.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            min=1,
            help="Also the mean of batches of so many rows, as trainers print it; may be repeated. 8 unless given.",
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
            help="Also the loss with this label smoothing; may be repeated.",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    also: Annotated[
        list[Also] | None,
        typer.Option(
            "--also",
            metavar="WAY",
            help="Also run the model this way, and print that loss; may be repeated: "
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
            help="Also the loss in windows of so many tokens.",
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
    forgetting: options.Forgetting = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Also write every example's and every token's loss there, as Parquet; goes on where it was stopped.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Measure the loss of a model, with or without an adapter.

    The loss is the mean over all counted tokens; perplexity is its exponential. Neither depends on how rows are
    packed or batched. With an adapter the base computes in the dtype that the adapter was trained in, unless --dtype
    says otherwise. Of a classifier accuracy and macro F1 are printed as well.
    """
    from loratlas.data.encode import load_tokenizer
    from loratlas.data.task_examples import encode_for
    from loratlas.sources import model_source, open_model, open_task

    if stride is not None and window is None:
        raise SettingsError(given="--stride without --window", found="nothing to advance", instead="--window")
    folder = adapter_folder(adapter) if adapter is not None else None
    if forgetting is not None and folder is None:
        raise SettingsError(
            given="--forgetting without --adapter",
            found="nothing that could have forgotten",
            instead="--adapter DIR, or the command on those rows alone",
        )
    check_result_folder(out)
    source = model_source(model)
    tokenizer = load_tokenizer(source)
    remark = check_tokenizer(folder, tokenizer) if folder is not None else None
    rows = rows_to_judge(data, split=split, columns=options.columns_of(columns), limit=limit)
    output.remark(rows)
    name = None if task is None else task.value
    chosen_task, config = open_task(source, rows, tokenizer, asked=name, known=adapter_task(folder, source))
    check_samples(chosen_task, samples=samples, rouge=rouge)
    if config is not None:
        _only_causal(chosen_task.name, also=also, smoothing=smoothing, window=window)

    def encode(text: Rows) -> Encoded:
        return encode_for(
            chosen_task, text, tokenizer, config=config or source, max_length=max_length, loss=loss.value
        )

    encoded = encode(rows)
    other = encode(rows_to_judge(forgetting, split=None, columns={}, limit=limit)) if forgetting else None
    if not as_json:
        output.note(encoded.report.sentence())
    number, words = choose_dtype(dtype, trained_dtype(folder))
    base = open_model(model, dtype=number, quantize=quantize.value if quantize else None, config=config)
    if folder is not None:
        from loratlas.adapters.load_adapter import load_adapter

        base = load_adapter(base, folder)
    base = to_device(check_head(base, folder))
    about = {
        "schema": "loratlas.eval",
        "version": 1,
        "model": model,
        "adapter": None if adapter is None else str(adapter),
        "dtype": number,
        "trained_dtype": trained_dtype(folder),
        "task": chosen_task.to_json(),
        "data": {"source": rows.source, "digest": rows.digest, **asdict(encoded.report)},
        "remark": remark,
        "out": None if out is None else str(out),
    }
    if config is not None:
        found = _judge_task(base, encoded, chosen_task, out)
    else:
        found = _judge_causal(
            base, rows, encoded, tokenizer,
            _Asked(
                out=out, max_length=max_length, dtype=number, adapted=folder is not None, also=also or (),
                sizes=batch_size or (), smoothing=smoothing or (), window=window, stride=stride,
                everything=bool(as_json or definitions or out or also or window or smoothing or batch_size),
            ),
        )  # fmt: skip
    answers = _answers(base, tokenizer, rows, samples, rouge)
    lost = _forgetting(base, other, forgetting, found.numbers["packed"]) if other is not None else None
    if as_json:
        output.emit({**about, **found.numbers, "forgetting": lost, "samples": answers})
        return
    for note in (found.note, remark):
        if note:
            output.note(note)
    if "classes" in found.numbers:
        show_classes(found.numbers)
    else:
        show_loss(found.numbers, words, tables=definitions)
    if definitions and found.definitions:
        show_definitions(found.numbers, found.definitions)
    if lost is not None:
        output.say(
            f"forgetting: {lost['base_nll']:.4f} → {lost['nll']:.4f} ({lost['difference']:+.4f}) on {lost['rows']:,} "
            f"rows of {lost['source']}"
        )
    if answers:
        for name, value in sample_scores(answers):
            output.say(f"{name}: {value}")
        show_samples(answers)
    if out is not None:
        output.say(f"Losses of every example and token: {out}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """Numbers for JSON, the definitions among them, and a remark on how they were computed."""

    numbers: dict[str, Any]
    definitions: Sequence[Definition] = ()
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What the options say about a causal evaluation."""

    out: Path | None
    max_length: int
    dtype: str
    adapted: bool
    also: Sequence[Also]
    sizes: Sequence[int]
    smoothing: Sequence[float]
    window: int | None
    stride: int | None
    everything: bool


def _judge_task(model: Any, encoded: Encoded, task: Task, out: Path | None) -> _Judged:
    """A classifier, or an encoder-decoder."""
    from loratlas.loss_audit.judge import judge_once

    numbers, chosen = judge_once(model, encoded, out)
    return _Judged(numbers={"packed": False, **numbers}, definitions=chosen)


def _judge_causal(model: Any, rows: Rows, encoded: Encoded, tokenizer: Any, asked: _Asked) -> _Judged:
    from loratlas.loss_audit.audit_passes import subject
    from loratlas.loss_audit.catalogue import BATCH_SIZES, catalogue
    from loratlas.loss_audit.definitions import REFERENCE, Evidence
    from loratlas.loss_audit.judge import scores_of, summary
    from loratlas.loss_audit.text_units import texts_of

    of, reason = subject(model, rows, encoded, tokenizer, watch=watch)
    sizes = asked.sizes or BATCH_SIZES
    plan = wanted_passes(of, asked, sizes)
    with workspace(asked.out) as folder:
        try:
            table = of.table(
                folder,
                everything=asked.everything,
                uniform=bool(asked.smoothing),
                bounds=asked.out is not None,
            )
        except KeyboardInterrupt:
            raise _stopped(asked.out) from None
    tables = {REFERENCE: table}
    with workspace(None) as folder:
        for one in plan:
            output.note(f"Once more {one.words}")
            tables[one.name] = one.take(of, folder / one.name, max_length=asked.max_length)
    evidence = Evidence(tables=tables, texts=texts_of(encoded, rows, tokenizer) if asked.everything else None)
    chosen = catalogue(
        evidence,
        batch_sizes=sizes,
        smoothing=asked.smoothing,
        regularisers={name.replace(" ", "_"): size for name, size in of.regularisers(sizes).items()},
    )
    numbers = {
        "packed": of.packed,
        **summary(scores_of(table), evidence, chosen),
        "about": {d.name: {"formula": d.formula, "used_by": d.used_by} for d in chosen},
    }
    return _Judged(
        numbers=numbers, definitions=chosen, note=f"Padded instead of packed: {reason}" if reason else ""
    )


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

    return samples(model, tokenizer, rows, limit=limit, rouge=rouge, compare=True) if limit else None


def _forgetting(model: Any, encoded: Encoded, source: str | None, packed: bool) -> dict[str, Any]:
    from loratlas.evaluation.forgetting import measure_forgetting

    return {"source": source, **measure_forgetting(model, encoded, packed=packed)}


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


def wanted_passes(of: Subject, asked: _Asked, sizes: Sequence[int]) -> list[Pass]:
    """The passes that were asked for.

    Raises:
        SettingsError: one that this model has no use for.
    """
    from loratlas.loss_audit.audit_passes import further

    names = {Also.shifted: "ahead"}
    plan = {
        one.name: one
        for one in further(
            of,
            dtype=asked.dtype,
            adapted=asked.adapted,
            sizes=sizes,
            window=asked.window,
            stride=asked.stride,
        )
    }
    chosen = [plan["windows"]] if asked.window is not None else []
    for each in dict.fromkeys(asked.also):
        name = names.get(each, each.name)
        if name not in plan:
            why = {
                Also.dropout: "a model without dropout",
                Also.adapter_off: "no adapter to switch off",
            }.get(each, f"a model that computes in {asked.dtype} already")
            raise SettingsError(given=f"--also {each.value}", found=why, instead="the command without it")
        chosen.append(plan[name])
    return chosen
