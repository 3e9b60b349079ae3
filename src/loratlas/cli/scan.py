"""`scan`: where adaptation pays on these rows, as a heat map, numbers and a plan."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loratlas import formats
from loratlas.cli import options, output
from loratlas.scan.advice import DECIDES, track_record

if TYPE_CHECKING:
    from loratlas.anatomy.sites import Anatomy, Site
    from loratlas.placement.allocate import Allocation
    from loratlas.placement.plan import Plan
    from loratlas.scan.scores import Scan
    from loratlas.signals.measure_signals import Reading

SHADES = " ░▒▓█"
STRETCHES = 32
"""Most lines of a heat map; deeper models put several layers into one line."""


def scan(
    model: options.Model,
    data: options.Data,
    budget: options.Budget = None,
    signals: Annotated[
        list[str] | None,
        typer.Option(
            "--signal",
            metavar="NAME",
            help="gradient, activation, alignment, attention, spectrum, probe or probe_yield; may be repeated. Unless "
            "given: those that do not train, and the one that decides.",
            show_default=False,
            rich_help_panel=options.PLACE,
        ),
    ] = None,
    by: options.By = DECIDES,
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
            help="Rows to read at most; fewer when the order has settled.",
            rich_help_panel=options.DATA,
        ),
    ] = 128,
    fisher: Annotated[
        bool,
        typer.Option(
            "--fisher", help="Measure per-example second moments as well.", rich_help_panel=options.PLACE
        ),
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
    as_json: options.Json = False,
) -> None:
    """Measure where adaptation pays on these rows, before anything is trained, and spend a budget there.

    Two short trials train adapters of rank 1 everywhere and decide, unless --by names another score; other signals
    share a few passes through the frozen model.
    Without a budget the plan spends what `all` at rank 16 does. --json prints what `--scores` of plan and train takes.
    """
    from loratlas.cli.evaluate import to_device
    from loratlas.cli.mapping import read_named
    from loratlas.cost.dry_run import PeakMemory, typical
    from loratlas.data.encode import encode, load_tokenizer
    from loratlas.data.model_limits import check_fits
    from loratlas.errors import SettingsError
    from loratlas.models.task import CAUSAL, recognise
    from loratlas.placement.allocate import Limits
    from loratlas.placement.budget import parse_budget
    from loratlas.scan import run_scan as room
    from loratlas.scan.plan_from_scores import LIKE, candidates, check_budget, plan_from
    from loratlas.sources import model_source, open_model, open_rows
    from loratlas.training.settings import Settings

    limits = Limits(
        floor=min_rank, ceiling=max_rank, multiple=multiple, whole_layers=whole_layers, top=top_layers
    )
    if budget is not None:
        parse_budget(budget)  # before the model is looked at
    chosen = list(dict.fromkeys(signals or room.NAMES))
    room.check_signals(chosen)
    owner = room.signal_of(by)
    if owner not in chosen:
        if signals:
            raise SettingsError(
                given=f"--by {by} with --signal {' --signal '.join(signals)}",
                found=f"{by} is not measured",
                instead=f"--signal {owner} as well, or another --by",
            )
        chosen.append(owner)
    anatomy = read_named(model)
    check_budget(anatomy, budget or LIKE, among=among, limits=limits)
    source = model_source(model)
    tokenizer = load_tokenizer(source)
    read = open_rows(data, split=split, mapping=options.columns_of(columns), limit=limit)
    recognise(source, read.form, asked=CAUSAL)  # signals are measured on causal language models
    encoded = encode(read, tokenizer, max_length=max_length, loss=loss.value)
    base = open_model(model, dtype=dtype.chosen, quantize=quantize.value if quantize else None)
    check_fits(encoded, base.config)
    output.remark(read)
    output.note(f"{read.source}: {encoded.report.sentence()}")
    with output.Progress("scanning", total=1, unit="passes") as bar:
        found = room.scan(
            to_device(base),
            anatomy,
            encoded,
            signals=chosen,
            by=by,
            among=among,
            most_rows=rows,
            seed=seed,
            fisher=fisher,
            on_pass=watched(bar),
        )
    plan, allocation = None, None
    if found.readings[by].silent is None:
        settings = Settings(dtype=dtype.chosen)
        plan, allocation = plan_from(
            found,
            anatomy,
            budget=budget,
            by=by,
            among=among,
            limits=limits,
            alpha=alpha,
            rslora=rslora,
            memory=PeakMemory(base.config, anatomy, typical(encoded.examples, settings.batch_size), settings),
        )
    if as_json:
        output.emit(_json(found, by, plan, allocation))
        return
    _show(found, anatomy, candidates(anatomy, among), by, plan, allocation)


def watched(bar: output.Progress) -> Callable[[int, int], None]:
    """What `on_pass` of a scan is told, on a bar."""

    def on_pass(passes: int, most: int) -> None:
        bar.total = most
        bar.to(passes, "")

    return on_pass


def _json(found: Scan, by: str, plan: Plan | None, allocation: Allocation | None) -> dict[str, Any]:
    from dataclasses import asdict

    told = None
    if allocation is not None:
        told = {k: v for k, v in asdict(allocation).items() if k not in ("ranks", "reasons")}
    return {
        **found.to_json(),
        "by": by,
        "plan": plan and plan.to_json(),
        "allocation": told,
        "track_record": track_record(by),
        "notes": found.notes(by),
    }


def _show(
    found: Scan,
    anatomy: Anatomy,
    sites: Sequence[Site],
    by: str,
    plan: Plan | None,
    allocation: Allocation | None,
) -> None:
    reading = found.readings[by]
    read = (
        f"{formats.count(found.rows)} rows, {formats.count(found.labelled)} counted tokens"
        if found.rows
        else "weights alone"
    )
    output.say(
        f"{anatomy.model} on {found.source}: {read}, the price of {found.cost_in_steps:.1f} training steps"
    )
    if reading.silent is None:
        _show_map(reading, sites)
    _show_signals(found)
    for said in found.notes(by):
        output.say(said)
    if plan is None or allocation is None:
        output.say("No plan: no signal.")
        return
    _show_plan(plan, allocation)
    output.say(track_record(by))


def _show_map(reading: Reading, sites: Sequence[Site]) -> None:
    """Layer by role; a cell is the share of the best site's value, 0 to 100, and a shade."""
    column = reading.column
    worth = {path: v if column.pays == "high" else 1 / max(v, 1e-12) for path, v in reading.values.items()}
    roles = list(dict.fromkeys(site.role for site in sites))
    layers = sorted({site.layer for site in sites if site.layer is not None})
    width = -(-len(layers) // STRETCHES) or 1
    stretches: list[Sequence[int | None]] = [layers[i : i + width] for i in range(0, len(layers), width)]
    if any(site.layer is None for site in sites):
        stretches.append([None])
    cells: dict[tuple[int, str], list[float]] = defaultdict(list)
    for place, stretch in enumerate(stretches):
        for site in sites:
            if site.layer in stretch and site.path in worth:
                cells[place, site.role].append(worth[site.path])
    means = {key: sum(listed) / len(listed) for key, listed in cells.items()}
    best = max(means.values(), default=0.0)
    drawn = output.table("layer", *((_short(role), "right") for role in roles))
    drawn.padding = (0, 1, 0, 0)
    for place, stretch in reversed(list(enumerate(stretches))):
        drawn.add_row(_name(stretch), *(_cell(means.get((place, role)), best) for role in roles))
    output.show(drawn)
    how = "" if column.pays == "high" else ", turned over: low values pay"
    output.say(
        f"{column.name} ({column.unit}{how}), of the best site's, in hundredths; the last layer on top."
    )


def _name(stretch: Sequence[int | None]) -> str:
    first, last = stretch[0], stretch[-1]
    return "–" if first is None else str(first) if first == last else f"{first}–{last}"


def _short(role: str) -> str:
    """``attn.q`` under one heading with its family, so that a dozen roles fit into 80 columns."""
    family, _, part = role.partition(".")
    return f"{family}\n{part}" if part else family


def _cell(value: float | None, best: float) -> str:
    if value is None or not best > 0:
        return "·"
    share = max(value / best, 0.0)
    shade = SHADES[min(int(share * len(SHADES)), len(SHADES) - 1)]
    return f"{shade}{round(100 * share):>3}"


def _show_signals(found: Scan) -> None:
    with_first: Mapping[str, float] = {
        told["two"]: told["tau"] for told in found.agreement() if told["one"] == "gradient"
    }
    beside = [("with gradient, τ", "right")] if with_first else []
    drawn = output.table("score", "pays", ("repeats, τ", "right"), ("of its top", "right"), *beside)
    for name, reading in found.readings.items():
        numbers = [reading.repeats, reading.repeats_top, *([with_first.get(name)] if with_first else [])]
        drawn.add_row(name, reading.column.pays, *map(_number, numbers))
    output.show(drawn)
    output.say(
        "repeats: agreement (Kendall) of the orders from two halves of the rows or two trials; top: of the best sites."
    )


def _number(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.2f}"


def _show_plan(plan: Plan, allocation: Allocation) -> None:
    from loratlas.placement.budget import UNITS, parse_budget

    unit = UNITS[parse_budget(allocation.budget).quantity]
    output.say(
        f"\nPlan for {allocation.budget}: {formats.count(allocation.spent)} of {formats.count(allocation.allowed)} "
        f"{unit}, {len(plan.rows)} sites"
        + (f", {len(allocation.left_out)} left out" if allocation.left_out else "")
    )
    by_role: dict[str, list[int]] = defaultdict(list)
    for row in plan.rows:
        by_role[row.site.role].append(row.rank)
    drawn = output.table("role", ("sites", "right"), "ranks", ("trainable", "right"))
    for role, ranks in by_role.items():
        count = sum(row.trainable for row in plan.rows if row.site.role == role)
        low, high = min(ranks), max(ranks)
        drawn.add_row(
            role, str(len(ranks)), str(low) if low == high else f"{low} to {high}", formats.count(count)
        )
    output.show(drawn)
    output.say(f"As text: {plan.text}")
