"""`scan`: where adapters help most on these rows, as a heat map, numbers, a plan and its LoraConfig."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loratlas import formats
from loratlas.cli import options, output
from loratlas.cli.scan_tables import Placed, show
from loratlas.files import jsonable, write_json
from loratlas.scan.advice import DECIDES, track_record
from loratlas.signals.registry import SIGNALS

if TYPE_CHECKING:
    from loratlas.placement.plan import Plan
    from loratlas.scan.pace import ScanEvent
    from loratlas.scan.scores import Scan

MINUTES = 5.0
"""A scan that would take longer asks for --yes."""

PHASES = {
    "weights": "weights",
    "passes": "scanning",
    "trials": "trial training",
    "removals": "removing adapters",
}
"""Phase of a scan → the words before its bar."""


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
            rich_help_panel=options.PLACE,
        ),
    ] = None,
    all_signals: Annotated[
        bool,
        typer.Option(
            "--all-signals",
            help="Measure every signal that does not train, beside the one that decides.",
            rich_help_panel=options.PLACE,
        ),
    ] = False,
    by: options.By = None,
    among: Annotated[
        str,
        typer.Option(
            "--among",
            metavar="TEXT",
            help="The sites to choose from, as a placement.",
            rich_help_panel=options.PLACE,
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
            "--fisher", help="Measure per-example second moments as well.", rich_help_panel=options.PLACE
        ),
    ] = False,
    trial_steps: Annotated[
        int | None,
        typer.Option(
            "--trial-steps",
            metavar="N",
            min=2,
            help="Steps of each of the two trials; 80 unless given. Fewer are quicker and know less.",
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
            help="Stop at once where the first steps say that it would take longer.",
            rich_help_panel=options.TRAIN,
        ),
    ] = MINUTES,
    yes: Annotated[
        bool, typer.Option("--yes", help="However long it takes.", rich_help_panel=options.TRAIN)
    ] = False,
    min_rank: options.MinRank = 0,
    max_rank: options.MaxRank = None,
    multiple: options.Multiple = 1,
    whole_layers: options.WholeLayers = False,
    top_layers: options.TopLayers = None,
    alpha: options.Alpha = None,
    rslora: options.RsLora = False,
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
    The first step is timed: a scan that would take longer than --minutes stops there.
    Without a budget the plan gets what `all` at rank 16 has. It ends with the plan's LoraConfig and the next command.
    """
    from loratlas.cli.evaluation_inputs import to_device
    from loratlas.cli.mapping import read_named
    from loratlas.cost.dry_run import PeakMemory, typical
    from loratlas.data.encode import encode, load_tokenizer
    from loratlas.data.model_limits import fitted
    from loratlas.models.task import CAUSAL, recognise
    from loratlas.placement.allocate import Limits
    from loratlas.placement.budget import parse_budget
    from loratlas.scan.plan_from_scores import LIKE, candidates, check_budget, plan_from
    from loratlas.scan.run_scan import scan as run
    from loratlas.sources import model_source, open_model, open_rows
    from loratlas.training.settings import Settings

    limits = Limits(
        floor=min_rank, ceiling=max_rank, multiple=multiple, whole_layers=whole_layers, top=top_layers
    )
    if budget is not None:
        parse_budget(budget)  # before the model is looked at
    by = by or DECIDES
    names = _signals(signals, by, everything=all_signals)
    _check_out(out, resume=resume)
    anatomy = read_named(model)
    check_budget(anatomy, budget or LIKE, among=among, limits=limits)
    source = model_source(model)
    tokenizer = load_tokenizer(source)
    read = open_rows(data, split=split, mapping=options.columns_of(columns), limit=limit)
    recognise(source, read.form, asked=CAUSAL)  # signals are measured on causal language models
    encoded = encode(read, tokenizer, max_length=max_length, loss=loss.value)
    base = open_model(model, dtype=dtype.chosen, quantize=quantize.value if quantize else None)
    encoded = fitted(encoded, base.config)
    output.remark(read)
    output.note(f"{read.source}: {encoded.report.sentence()}")
    with output.Progress("scanning", total=1, unit="steps") as bar:
        scanned = run(
            to_device(base),
            anatomy,
            encoded,
            signals=names,
            by=by,
            among=among,
            most_rows=rows,
            seed=seed,
            fisher=fisher,
            trial_steps=trial_steps,
            minutes=None if yes else minutes,
            out=out,
            resume=resume,
            on_event=show_progress(bar),
        )
    placed = None
    if scanned.readings[by].silent is None:
        settings = Settings(dtype=dtype.chosen)
        plan, allocation = plan_from(
            scanned,
            anatomy,
            budget=budget,
            among=among,
            limits=limits,
            alpha=alpha,
            rslora=rslora,
            memory=PeakMemory(base.config, anatomy, typical(encoded.examples, settings.batch_size), settings),
        )
        placed = Placed(plan=plan, allocation=allocation, peft=jsonable(plan.to_peft(base.config).to_dict()))
    kept = _json(scanned, placed)
    if out is not None:
        _keep(out, kept)
    if as_json:
        output.emit(kept)
        return
    show(scanned, anatomy, candidates(anatomy, among), placed)
    if placed is not None:
        plain = limits == Limits() and among == "all"
        output.say(f"\nNext: {_next(model, data, placed.plan, budget, out if plain else None)}")


def _signals(asked: Sequence[str] | None, by: str, *, everything: bool) -> list[str]:
    """Signals to be measured: those asked for, or the one that decides."""
    from loratlas.errors import SettingsError
    from loratlas.signals.registry import check_signals, signal_of, untrained

    if asked:
        check_signals(asked)
    owner = signal_of(by)
    names = list(dict.fromkeys([*(asked or ()), *(untrained() if everything else ())]))
    if owner not in names and not ("probe" in names and owner == "probe_yield"):
        if asked:
            raise SettingsError(
                given=f"--by {by} with --signal {' --signal '.join(asked)}",
                found=f"{by} is not measured",
                instead=f"--signal {owner} as well, or another --by",
            )
        names.append(owner)
    return names


def _check_out(out: Path | None, *, resume: bool) -> None:
    from loratlas.cli.folders import check_out
    from loratlas.errors import SettingsError
    from loratlas.scan.scan_folder import STATE
    from loratlas.scan.scores import RESULT

    if resume and out is None:
        raise SettingsError(
            given="--resume without --out", found="no folder to go on from", instead="--out DIR --resume"
        )
    check_out(
        out, mine=(RESULT, STATE) if resume else (), what="scan, or --resume to go on with the one there"
    )
    if resume and out is not None and not (out / STATE).exists():
        output.note(f"{out}: no scan to resume; it begins at the beginning.")


def _keep(out: Path, data: dict[str, Any]) -> None:
    from loratlas.scan.scores import RESULT

    write_json(out / RESULT, data)


def _next(model: str, data: str, plan: Plan, budget: str | None, out: Path | None) -> str:
    """The command that trains what was found."""
    if out is not None:
        words = ["--placement", "auto", "--scores", str(out), *(["--budget", budget] if budget else [])]
    else:
        words = ["--placement", plan.text]
    return shlex.join(["loratlas", "train", model, data, *words, "--out", "run"])


def show_progress(bar: output.Progress) -> Callable[[ScanEvent], None]:
    """What a scan reports, on a bar; the first estimate on a line of its own."""

    def on_event(event: ScanEvent) -> None:
        bar.total = event.total
        bar.to(event.done, "", title=PHASES[event.phase], left=event.seconds_left, unit=event.unit)
        if event.estimate and event.seconds_left is not None and event.done < event.total:
            output.note(
                f"{PHASES[event.phase]}: about {formats.duration(event.seconds_left)}, by its first steps"
            )

    return on_event


def _json(scanned: Scan, placed: Placed | None) -> dict[str, Any]:
    allocation = None
    if placed is not None:
        whole = asdict(placed.allocation)
        allocation = {k: v for k, v in whole.items() if k not in ("ranks", "reasons")}
    return {
        **scanned.to_json(),
        "plan": placed and placed.plan.to_json(),
        "peft": placed and placed.peft,
        "allocation": allocation,
        "track_record": track_record(scanned.by),
        "notes": scanned.notes(),
    }
