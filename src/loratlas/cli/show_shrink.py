"""`show` and `shrink`: an adapter's updates site by site, and the closest adapter of a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loratlas.cli import options, output
from loratlas.cli.base_name import Base, base_named
from loratlas.cli.progress import Terminal
from loratlas.errors import SettingsError
from loratlas.files import write_text

Adapter = Annotated[
    Path,
    typer.Argument(
        metavar="ADAPTER",
        help="A PEFT adapter's directory, or the --out folder of `loratlas train`.",
        show_default=False,
    ),
]


def show_adapter(
    adapter: Adapter,
    base: Base = None,
    weights: Annotated[
        bool,
        typer.Option(
            "--weights/--no-weights",
            help="Read the base's weights for the share of their norm.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = True,
    figure: Annotated[
        Path | None,
        typer.Option(
            "--figure",
            metavar="FILE",
            help="Also draw layers against roles, as a page (.html) that needs no network.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show how large the update of each site is and how many directions it uses.

    No base is needed; where it can be loaded, the share of its weights' norm is shown as well.
    """
    from loratlas.api.show_adapter_folder import show

    if figure is not None and figure.suffix != ".html":
        raise SettingsError(
            given=f"--figure {figure}",
            found="no name of a page",
            instead=f"--figure {figure.with_suffix('.html')}",
        )
    shown = show(adapter, base=base_named(base), weights=weights)
    if figure is not None:
        write_text(figure, shown.plot().to_html(include_plotlyjs=True))
        output.note(f"Figure: {figure}")
    if as_json:
        output.emit(shown.to_json())
        return
    output.say_blocks(shown.blocks())


def shrink_adapter(
    adapter: Adapter,
    budget: Annotated[
        str,
        typer.Option(
            "--budget",
            metavar="TEXT",
            help="params=200k, params=0.1% (of the base's parameters) or like=q,v:4 (as many parameters).",
            show_default=False,
            rich_help_panel=options.PLACEMENT,
        ),
    ],
    out: options.Out,
    data: Annotated[
        str | None,
        typer.Option(
            "--eval",
            metavar="DATA",
            help="Rows to measure the loss on, before and after; not those it was trained on.",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    base: Base = None,
    limit: options.Limit = None,
    max_length: options.MaxLength = 512,
    delta: Annotated[
        float,
        typer.Option(
            "--delta",
            metavar="NATS",
            min=0.0,
            help="Margin of equivalence, nats per token.",
            rich_help_panel=options.DATA,
        ),
    ] = 0.01,
    as_json: options.Json = False,
) -> None:
    """Write the closest adapter of a budget: the largest singular directions of all sites, per parameter.

    The result is an ordinary adapter. With --eval the loss is measured before and after, and judged as studies judge.
    """
    from loratlas.api.shrink_adapter_folder import shrink

    made = shrink(
        adapter,
        out,
        budget=budget,
        data=data,
        base=base_named(base),
        limit=limit,
        max_length=max_length,
        delta=delta,
        listener=Terminal(),
    )
    if as_json:
        output.emit(dict(made.numbers))
        return
    output.say_blocks(made.blocks())
