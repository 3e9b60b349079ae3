"""`map` and `plan`: what a model is made of, and what a placement on it costs. Neither loads weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from loratlas import formats
from loratlas.api.place_model import check_scores, placed, read_named
from loratlas.cli import options, output
from loratlas.cli.base_name import base_named
from loratlas.cli.progress import Terminal
from loratlas.errors import SettingsError
from loratlas.placement.plan import ranks_in_words

if TYPE_CHECKING:
    from loratlas.anatomy.sites import Anatomy, Site
    from loratlas.placement.plan import Plan

STRIP = 16
"""Characters a strip of layers may take; deeper models put several layers into one character."""


def map_model(
    model: options.ModelOrConfig,
    prove: Annotated[
        bool,
        typer.Option(
            "--prove",
            help="Identify every role by three independent methods; exit 1 where they disagree.",
        ),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Show every matrix of a model: its role, its shape, and its layers.

    No weights are read. Unidentified matrices are listed as unresolved, never guessed.
    """
    model = base_named(model)
    if prove:
        from loratlas.cli.proving import map_with_proof

        map_with_proof(model, as_json)
        return
    anatomy = read_named(model)
    if as_json:
        output.emit(anatomy.to_json())
        return
    output.say(
        f"{anatomy.model} ({anatomy.model_type}): {formats.count(anatomy.parameters)} parameters, "
        f"{anatomy.layers} layers, width {anatomy.hidden}"
    )
    copies = {path for site in anatomy.sites for path in site.called_as}
    tied = [site for site in anatomy.sites if site.tied_to is not None and site.path not in copies]
    drawn = output.table("role", "layers", ("sites", "right"), "shape", "kind", ("one rank costs", "right"))
    for (role, shape, kind), sites in _by_role(anatomy.sites).items():
        cost = sum(site.lora_parameters(1) for site in sites if site.adaptable)
        drawn.add_row(
            role,
            _strip([site.layer for site in sites], anatomy.layers),
            str(len(sites)),
            f"{shape[0]} × {shape[1]}",
            kind,
            formats.count(cost) if cost else "–",
        )
    output.show(drawn)
    if any(site.layer is not None for site in anatomy.sites):
        output.say("layers: ■ in every layer of the strip, ▪ in some, · in none. shape: out × in.")
    for site in tied:
        output.say(f"{site.module} is the same matrix as {site.tied_to} and is counted there.")
    several = [site for site in anatomy.sites if site.called_as and "inert" not in site.flags]
    if several:
        output.say(
            f"{len(several)} matrices are called under several names, and one adapter serves all of them: "
            f"{several[0].module} is also {', '.join(several[0].called_as[1:4])}"
            f"{', …' if len(several[0].called_as) > 4 or len(several) > 1 else ''}."
        )
    if anatomy.unresolved:
        output.say(f"\nUnresolved, not adapted ({len(anatomy.unresolved)}):")
        for item in anatomy.unresolved:
            output.say(f"  {item.path} {'×'.join(map(str, item.shape))}: {item.reason}")
    else:
        output.say("Unresolved: none.")


def plan_model(
    model: options.ModelOrConfig,
    placement: options.Placement,
    budget: options.Budget = None,
    scores: options.Scores = None,
    by: options.By = None,
    alpha: options.Alpha = None,
    rslora: options.RsLora = False,
    dora: options.Dora = False,
    round_ranks: options.RoundRanks = False,
    allow_unresolved: options.AllowUnresolved = False,
    batch_size: options.BatchSize = 16,
    max_length: Annotated[
        int,
        typer.Option(
            "--max-length",
            metavar="TOKENS",
            min=2,
            help="Tokens per row of the training step whose cost is predicted.",
            rich_help_panel=options.TRAIN,
        ),
    ] = 128,
    dtype: options.DtypeOption = options.Dtype.auto,
    time: Annotated[
        bool,
        typer.Option(
            "--time",
            help="Predict seconds per step; what this machine has not timed yet is timed first, for some seconds.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    peft: Annotated[
        bool,
        typer.Option(
            "--peft",
            help="Print the LoraConfig alone, as Python, proven to adapt these sites and no other.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    emit: Annotated[
        str | None,
        typer.Option(
            "--emit",
            metavar="TRAINER",
            help="Print what another trainer reads, alone: peft, trl, axolotl, llama-factory, swift or unsloth.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Turn a placement into a table of exact sites and ranks, and say what it costs.

    No weights are read. Terms without a rank get 16, or what the budget allows. --placement auto distributes the
    budget by the scores of an earlier scan.
    """
    from loratlas.cli.pricing import Step, price, proven_config, show
    from loratlas.scan.plan_from_scores import is_auto
    from loratlas.sources import model_source

    model = base_named(model)
    anatomy = read_named(model)
    check_scores(placement, scores)
    if is_auto(placement) and scores is None:
        raise SettingsError(
            given="--placement auto without --scores",
            found="no scores to place by; they need weights and rows",
            instead=f"loratlas scan {model} DATA --out scan, then --scores scan",
        )
    step = Step(
        source=model_source(model), anatomy=anatomy, rows=batch_size, length=max_length, dtype=dtype.value
    )
    plan = placed(
        anatomy,
        placement,
        scores=scores,
        by=by,
        budget=budget,
        alpha=alpha,
        rslora=rslora,
        dora=dora,
        memory=step.memory(),
        allow_unresolved=allow_unresolved,
        round_ranks=round_ranks,
        listener=Terminal(),
    )
    if emit is not None:
        from loratlas.integrations.emit_plan import emit as write
        from loratlas.models.config import load_config

        written = write(plan, anatomy, load_config(step.source), emit, model=step.source)
        output.emit(written.to_json()) if as_json else output.say(written.text.rstrip())
        return
    if peft and not as_json:
        from loratlas.models.config import load_config
        from loratlas.placement.peft_code import plan_code

        output.say(plan_code(plan, anatomy, load_config(step.source), step.source).rstrip())
        return
    config = proven_config(plan, step.source)
    spent = price(plan, step, timed=time)
    if as_json:
        output.emit({**plan.to_json(), "cost": spent, "peft": config})
        return
    show_plan(anatomy, plan)
    show(spent)
    output.say(f"As text: {plan.text if len(plan.text) < 300 else plan.placement}")
    output.say("PEFT adapts exactly these sites, proven on a copy without weights; its LoraConfig: --peft.")


def show_plan(anatomy: Anatomy, plan: Plan) -> None:
    output.say(f"{plan.placement} on {anatomy.model} ({anatomy.model_type}): {len(plan.rows)} sites")
    shares = output.table("", ("", "right"), "")
    shares.show_header = False
    shares.add_row("trainable", formats.count(plan.trainable), "parameters")
    shares.add_row(
        "of the model",
        f"{plan.of_model:.2%}",
        f"{1 - plan.of_model:.2%} less than full fine-tuning of {formats.count(anatomy.parameters)}",
    )
    part = plan.of_full_lora
    if part is not None:
        even = len({row.rank for row in plan.rows}) == 1
        factors = sum(row.site.lora_parameters(row.rank) for row in plan.rows)
        whole = f"all at equal {'' if even else 'mean '}rank, {formats.count(factors / part)}"
        less = f"{abs(1 - part):.2%} {'less' if part < 1 else 'more'} than" if part != 1 else "the same as"
        shares.add_row("of full LoRA", f"{part:.2%}", f"{less} {whole}")
    output.show(shares)
    drawn = output.table("role", "layers", ("sites", "right"), "rank", "α", ("trainable", "right"))
    ranks = {row.site.path: row for row in plan.rows}
    for (role, _, _), sites in _by_role(row.site for row in plan.rows).items():
        rows = [ranks[site.path] for site in sites]
        drawn.add_row(
            role,
            _strip([site.layer for site in sites], anatomy.layers),
            str(len(sites)),
            ranks_in_words([row.rank for row in rows]),
            ranks_in_words([row.alpha for row in rows]),
            formats.count(sum(row.trainable for row in rows)),
        )
    output.show(drawn)
    for sentence in plan.variants:
        output.say(sentence)


def _by_role(sites: Iterable[Site]) -> dict[tuple[str, tuple[int, int], str], list[Site]]:
    groups: dict[tuple[str, tuple[int, int], str], list[Site]] = defaultdict(list)
    for site in sites:
        role = site.role if site.scope == "decoder" else f"{site.scope}.{site.role}"
        groups[role, site.shape, site.kind].append(site)
    return groups


def _strip(layers: Sequence[int | None], total: int) -> str:
    """``■`` where every layer of a stretch is among these, ``▪`` where some are, ``·`` where none is.

    >>> _strip([0, 1, 3], 4), _strip([None], 4)
    ('■■·■', '–')
    """
    present = {layer for layer in layers if layer is not None}
    if not present or not total:
        return "–"
    width = -(-total // STRIP)
    stretches = [range(start, min(start + width, total)) for start in range(0, total, width)]
    marks = []
    for stretch in stretches:
        inside = sum(layer in present for layer in stretch)
        marks.append("■" if inside == len(stretch) else "▪" if inside else "·")
    return "".join(marks)
