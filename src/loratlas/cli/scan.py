"""`scan`: where adapters help most on these rows, as a heat map, numbers, a plan and its LoraConfig."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loratlas.cli import options, output
from loratlas.cli.column_text import columns_of
from loratlas.cli.progress import Terminal
from loratlas.cli.tables.scan_tables import show
from loratlas.signals.registry import SIGNALS

if TYPE_CHECKING:
    from loratlas.anatomy.sites import Anatomy
    from loratlas.placement.plan import Plan

MINUTES = 5.0
"""What a scan takes at most, unless --yes."""


def scan(
    model: options.Model,
    data: options.Data,
    budget: options.Budget = None,
    signals: Annotated[
        list[str] | None,
        typer.Option(
            "--signal",
            metavar="NAME",
            help=", ".join(SIGNALS) + "; may be repeated. Unless given: the one that decides.",
            show_default=False,
            rich_help_panel=options.PLACEMENT,
        ),
    ] = None,
    all_signals: Annotated[
        bool,
        typer.Option(
            "--all-signals",
            help="Measure every signal that does not train, in addition to the one that decides.",
            rich_help_panel=options.PLACEMENT,
        ),
    ] = False,
    by: options.By = None,
    among: Annotated[
        str,
        typer.Option(
            "--among",
            metavar="TEXT",
            help="The sites to choose from, as a placement.",
            rich_help_panel=options.PLACEMENT,
        ),
    ] = "all",
    rows: Annotated[
        int,
        typer.Option(
            "--rows",
            metavar="N",
            min=4,
            help="Rows that signals read at most; fewer when the order has settled.",
            rich_help_panel=options.DATA,
        ),
    ] = 128,
    fisher: Annotated[
        bool,
        typer.Option(
            "--fisher", help="Measure per-example second moments as well.", rich_help_panel=options.PLACEMENT
        ),
    ] = False,
    trial_steps: Annotated[
        int | None,
        typer.Option(
            "--trial-steps",
            metavar="N",
            min=2,
            help="Steps of each of the two trials. Unless given: 80, or 40 or 20 to end within --minutes.",
            show_default=False,
            rich_help_panel=options.TRAIN,
        ),
    ] = None,
    minutes: Annotated[
        float,
        typer.Option(
            "--minutes",
            metavar="N",
            min=0,
            help="How long it may take: trials are shortened to end in time, and if that is not enough it stops.",
            rich_help_panel=options.TRAIN,
        ),
    ] = MINUTES,
    yes: Annotated[bool, typer.Option("--yes", help="No time limit.", rich_help_panel=options.TRAIN)] = False,
    min_rank: options.MinRank = 0,
    max_rank: options.MaxRank = None,
    multiple: options.Multiple = 1,
    whole_layers: options.WholeLayers = False,
    top_layers: options.TopLayers = None,
    alpha: options.Alpha = None,
    rslora: options.RsLora = False,
    round_ranks: options.RoundRanks = False,
    split: options.Split = None,
    columns: options.Columns = None,
    limit: options.Limit = None,
    loss: options.LossOver = options.Loss.answer,
    max_length: options.MaxLength = 512,
    seed: options.Seed = 0,
    dtype: options.DtypeOption = options.Dtype.auto,
    quantize: options.QuantizeOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Keep the scores there (scan.json), for --scores; a stopped scan can be resumed.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    resume: options.Resume = False,
    as_json: options.Json = False,
) -> None:
    """Measure where adapters help most on these rows, before a run, and distribute a budget by that.

    Two short trials train adapters of rank 1 everywhere and decide, unless --by names another score.
    The first steps are timed: where 80 steps would take longer than --minutes, the trials have 40 or 20; where these do
    too, the scan stops at once.
    Without a budget the plan gets what `all` at rank 16 has. It ends with the plan's LoraConfig and the next command.
    """
    from loratlas.api.scan_model import scan as run
    from loratlas.placement.allocate import Limits

    scanned = run(
        model,
        data,
        budget=budget,
        signals=signals or (),
        all_signals=all_signals,
        by=by,
        among=among,
        rows=rows,
        fisher=fisher,
        trial_steps=trial_steps,
        minutes=None if yes else minutes,
        limits=Limits(
            floor=min_rank, ceiling=max_rank, multiple=multiple, whole_layers=whole_layers, top=top_layers
        ),
        alpha=alpha,
        rslora=rslora,
        round_ranks=round_ranks,
        split=split,
        columns=columns_of(columns),
        limit=limit,
        loss=loss.value,
        max_length=max_length,
        seed=seed,
        dtype=dtype.chosen,
        quantize=quantize.value if quantize else None,
        out=out,
        resume=resume,
        listener=Terminal(),
    )
    if as_json:
        output.emit(dict(scanned.numbers))
        return
    show(scanned.scan, scanned.anatomy, scanned.sites, scanned.placed)
    if scanned.placed is not None:
        output.say(f"\n{_lora_config(model, scanned.placed.plan, scanned.anatomy)}")
        kept = out if scanned.is_plain else None
        more = ["--budget", budget] if budget and kept else []
        more += ["--round-ranks"] if round_ranks and kept else []
        more += ["--alpha", f"{alpha:g}"] if alpha is not None else []
        more += ["--rslora"] if rslora else []
        output.say(f"\nNext: {_next(model, data, scanned.placed.plan, kept, more)}")


def _lora_config(model: str, plan: Plan, anatomy: Anatomy) -> str:
    """As `plan --peft` prints it."""
    from loratlas.models.config import load_config
    from loratlas.placement.peft_code import plan_code
    from loratlas.sources import model_source

    source = model_source(model)
    return plan_code(plan, anatomy, load_config(source), source).rstrip()


def _next(model: str, data: str, plan: Plan, out: Path | None, more: Sequence[str]) -> str:
    """The command that trains what was found."""
    words = ["--placement", plan.text] if out is None else ["--placement", "auto", "--scores", str(out)]
    return shlex.join(["loratlas", "train", model, data, *words, *more, "--out", "run"])
