"""`claims`: what holds of the study that this project comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loratlas.cli import options, output


def claims(
    studies: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[STUDY]...",
            help="Studies of your own to judge by as well: their folders, or what `loratlas study --json` printed.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Write all claims with their numbers, as Markdown.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Judge the claims of the founding study: attention or feed-forward, at what cost, and does it carry over.

    Verdicts come from this project's own studies and benchmarks, and from yours if you name some.
    """
    from loratlas.api.judge_claims import claims as judged
    from loratlas.files import write_text

    found = judged(*(studies or ()))
    if out is not None:
        write_text(out, found.page())
    if as_json:
        output.emit({**found.to_json(), **({"page": str(out)} if out else {})})
        return
    table = output.table(("#", "right"), "claim", "verdict")
    for one in found.verdicts:
        table.add_row(str(one.number), one.claim, one.verdict)
    output.show(table)
    for one in found.verdicts:
        output.say(f"{one.number}: {' '.join(one.because)}")
    output.say(f"Page: {out}" if out else "All tables: --out claims.md")
