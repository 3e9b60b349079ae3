"""`eval`: its options, and what it prints; what it does is `loratlas.evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loratlas.api.evaluate_model import Also
from loratlas.cli import options, output
from loratlas.cli.column_text import columns_of
from loratlas.cli.judging import Stride, Window, sample_scores, show_classes, show_samples
from loratlas.cli.progress import Terminal
from loratlas.cli.tables.evaluation_tables import show_definitions, show_loss


def evaluate(
    model: options.Model,
    data: options.Data,
    adapter: Annotated[
        Path | None,
        typer.Option(
            "--adapter",
            metavar="DIR",
            help="A PEFT adapter, or the --out folder of `loratlas train`.",
            rich_help_panel=options.PLACEMENT,
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
    window: Window = None,
    stride: Stride = None,
    samples: options.Samples = 0,
    rouge: options.Rouge = False,
    forgetting: options.Forgetting = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Also write every example's and every token's loss there, as Parquet; continues where it was stopped.",
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
    from loratlas.api.evaluate_model import evaluate as run

    evaluation = run(
        model,
        data,
        adapter=adapter,
        split=split,
        columns=columns_of(columns),
        limit=limit,
        task=None if task is None else task.value,
        loss=loss.value,
        max_length=max_length,
        dtype=None if dtype is options.Dtype.auto else dtype.value,
        quantize=quantize.value if quantize else None,
        definitions=definitions or as_json,
        batch_sizes=batch_size or (),
        smoothing=smoothing or (),
        also=also or (),
        window=window,
        stride=stride,
        samples=samples,
        rouge=rouge,
        forgetting=forgetting,
        out=out,
        listener=Terminal(),
    )
    if as_json:
        output.emit(dict(evaluation.numbers))
        return
    for note in evaluation.notes:
        output.note(note)
    if "classes" in evaluation.numbers:
        show_classes(evaluation.numbers)
    else:
        show_loss(evaluation.numbers, evaluation.computed, tables=definitions)
    if definitions and evaluation.definitions:
        show_definitions(evaluation.numbers, evaluation.definitions)
    lost, answers = evaluation.numbers["forgetting"], evaluation.numbers["samples"]
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
