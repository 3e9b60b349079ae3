"""`train`: its options; what it does is `loratlas.train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loratlas.cli import options, output
from loratlas.cli.column_text import columns_of
from loratlas.cli.progress import Terminal
from loratlas.cli.rate_text import LearningRate, SiteRates, rates_of


def train(
    model: options.Model,
    data: options.Data,
    *,
    placement: Annotated[
        str | None,
        typer.Option(
            "--placement",
            metavar="TEXT",
            help='Where the adapters go: "attention:16", "q,v:8 + feedforward.down:4", or auto: the run decides in '
            "its own first steps.",
            show_default=False,
            rich_help_panel=options.PLACEMENT,
        ),
    ] = None,
    budget: options.Budget = None,
    signal: Annotated[
        str | None,
        typer.Option(
            "--signal",
            metavar="NAME",
            help="With --placement auto: what decides, e.g. weighted, energy, descent, gradient, attention, adalora.",
            rich_help_panel=options.PLACEMENT,
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            "--head",
            metavar="SHARE",
            help="With --placement auto: steps before the decision, 10% unless given, or a count.",
            rich_help_panel=options.PLACEMENT,
        ),
    ] = None,
    decide: Annotated[
        str | None,
        typer.Option(
            "--decide",
            metavar="WHEN",
            help="With --placement auto: once, or every=50 steps until half of the run.",
            rich_help_panel=options.PLACEMENT,
        ),
    ] = None,
    scores: options.Scores = None,
    by: options.By = None,
    alpha: options.Alpha = None,
    rslora: options.RsLora = False,
    dora: options.Dora = False,
    round_ranks: options.RoundRanks = False,
    allow_unresolved: options.AllowUnresolved = False,
    adapter: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="ADAPTER",
            help="Start from this adapter instead of a new one; its placement is kept.",
            rich_help_panel=options.PLACEMENT,
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            metavar="NAME",
            help="How adapters begin: true (PEFT's default), eva (along what the first rows put in), auto (eva where "
            "that spreads over many channels, else true; with --placement auto unless given), or e.g. gaussian, pissa.",
            rich_help_panel=options.PLACEMENT,
        ),
    ] = None,
    split: options.Split = None,
    columns: options.Columns = None,
    limit: options.Limit = None,
    task: options.TaskOption = None,
    loss: options.LossOver = options.Loss.answer,
    max_length: options.MaxLength = 512,
    evaluate: Annotated[
        str | None,
        typer.Option(
            "--eval",
            metavar="DATA",
            help="Rows to measure the loss on at the end (and for --early-stop).",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    eval_split: Annotated[
        str | None,
        typer.Option(
            "--eval-split",
            metavar="NAME",
            help="Which split of --eval (or of DATA without it).",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    samples: options.Samples = 0,
    rouge: options.Rouge = False,
    forgetting: options.Forgetting = None,
    steps: options.Steps = None,
    epochs: options.Epochs = None,
    lr: LearningRate = "auto",
    schedule: Annotated[
        options.LearningRateSchedule,
        typer.Option("--schedule", help="What follows the warm-up.", rich_help_panel=options.TRAIN),
    ] = options.LearningRateSchedule.cosine,
    warmup: Annotated[
        float,
        typer.Option(
            "--warmup",
            metavar="SHARE",
            help="Share of the steps to warm up in.",
            rich_help_panel=options.TRAIN,
        ),
    ] = 0.03,
    batch_size: options.BatchSize = 16,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            "--micro-batch",
            metavar="N",
            help="Examples that are computed at a time; the step's result stays the same.",
            rich_help_panel=options.TRAIN,
        ),
    ] = None,
    clip: Annotated[
        float,
        typer.Option(
            "--clip",
            metavar="NORM",
            help="Largest norm of the gradient; 0 for no limit.",
            rich_help_panel=options.TRAIN,
        ),
    ] = 1.0,
    weight_decay: Annotated[
        float,
        typer.Option(
            "--weight-decay", metavar="RATE", help="AdamW's weight decay.", rich_help_panel=options.TRAIN
        ),
    ] = 0.0,
    dropout: Annotated[
        float,
        typer.Option(
            "--dropout", metavar="P", help="Dropout in front of the adapters.", rich_help_panel=options.TRAIN
        ),
    ] = 0.0,
    base_dropout: Annotated[
        bool,
        typer.Option("--base-dropout", help="Keep the base's own dropout.", rich_help_panel=options.TRAIN),
    ] = False,
    loraplus: Annotated[
        float | None,
        typer.Option(
            "--loraplus",
            metavar="RATIO",
            help="LoRA+: the B matrices learn this many times faster.",
            rich_help_panel=options.TRAIN,
        ),
    ] = None,
    site_rates: Annotated[
        SiteRates,
        typer.Option(
            "--site-rates",
            help="curvature: after a tenth of the steps every site gets a learning rate of its own, by its curvature.",
            rich_help_panel=options.TRAIN,
        ),
    ] = SiteRates.equal,
    early_stop: Annotated[
        int | None,
        typer.Option(
            "--early-stop",
            metavar="N",
            help="Stop after N measurements on --eval without a better one.",
            rich_help_panel=options.TRAIN,
        ),
    ] = None,
    seed: options.Seed = 0,
    dtype: options.DtypeOption = options.Dtype.auto,
    quantize: options.QuantizeOption = None,
    checkpointing: Annotated[
        bool,
        typer.Option(
            "--checkpointing",
            help="Keep fewer activations and compute them twice.",
            rich_help_panel=options.TRAIN,
        ),
    ] = False,
    compile: options.CompileOption = options.Compile.auto,
    out: options.Out,
    resume: options.Resume = False,
    save_every: Annotated[
        int,
        typer.Option(
            "--save-every",
            metavar="N",
            min=1,
            help="Steps between checkpoints; one is also due after a minute.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = 100,
    report_to: Annotated[
        list[str] | None,
        typer.Option(
            "--report-to",
            metavar="NAME",
            help="tensorboard or wandb; may be repeated.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    verbose: options.Verbose = False,
    as_json: options.Json = False,
) -> None:
    """Train adapters at the sites of a placement, and write them as an ordinary PEFT adapter.

    Rows of text and label train a classifier, whose head is trained and saved with the adapter; an encoder-decoder
    writes targets from sources; every other model continues a text.

    The base stays frozen. Ctrl-C or SIGTERM saves the state; the same command with --resume then ends with the same
    numbers.
    """
    from loratlas.api.train_run import train as run
    from loratlas.cli.tables.train_tables import show_run
    from loratlas.training.settings import Settings

    settings = Settings(
        steps=steps,
        epochs=epochs,
        lr=rates_of(lr),
        schedule=schedule.value,
        warmup=warmup,
        batch_size=batch_size,
        micro_batch=micro_batch,
        clip=clip or None,
        weight_decay=weight_decay,
        dropout=dropout,
        loraplus=loraplus,
        site_rates=site_rates.value,
        early_stop=early_stop,
        seed=seed,
        dtype=dtype.chosen,
        checkpointing=checkpointing,
        save_every=save_every,
        compile=compile.value,
        init=True if init == "true" else init,
        report_to=tuple(report_to or ()),
    )
    trained = run(
        model,
        data,
        placement=placement,
        budget=budget,
        settings=settings,
        signal=signal,
        head=head,
        decide=decide,
        out=out,
        evaluate=evaluate,
        eval_split=eval_split,
        scores=scores,
        by=by,
        alpha=alpha,
        rslora=rslora,
        dora=dora,
        round_ranks=round_ranks,
        allow_unresolved=allow_unresolved,
        adapter=adapter,
        split=split,
        columns=columns_of(columns),
        limit=limit,
        task=None if task is None else task.value,
        loss=loss.value,
        max_length=max_length,
        samples=samples,
        rouge=rouge,
        forgetting=forgetting,
        quantize=quantize.value if quantize else None,
        base_dropout=base_dropout,
        resume=resume,
        listener=Terminal(),
    )
    if as_json:
        output.emit(dict(trained.numbers))
    else:
        show_run(trained.numbers, verbose=verbose)
