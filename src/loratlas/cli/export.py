"""`export`: hand an adapter on, and prove that what was written computes the same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from loratlas.cli import options, output

TOLERANCE = 1e-3
"""Largest difference of logits after reloading that still counts as the same (float32)."""


def export(
    adapter: Annotated[
        Path,
        typer.Argument(
            metavar="ADAPTER",
            help="A PEFT adapter's directory, or the --out folder of `loratlas train`.",
            show_default=False,
        ),
    ],
    target: Annotated[
        options.Target,
        typer.Option(
            "--for",
            help="peft: the adapter in PEFT's own format; merged: the whole model with the adapter added in.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ],
    out: options.Out,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="MODEL",
            help="The base, where it lies elsewhere than the adapter says.",
            rich_help_panel=options.PLACEMENT,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Write an adapter for other tools, load it again, and compare the logits.

    check is the largest difference of logits on fixed tokens between what was trained and what was written.
    """
    from loratlas.api.export_run import export as write

    result = write(adapter, out, target=target.value, base=base)
    same = result.check <= TOLERANCE  # false for NaN as well
    if as_json:
        output.emit(
            {
                "schema": "loratlas.export",
                "version": 1,
                "for": target.value,
                "path": result.path,
                "check": result.check if math.isfinite(result.check) else None,
                "dtype": result.dtype,
                "recipe": result.recipe,
                "remarks": result.remarks,
            }
        )
    else:
        differ = f"{result.check:.2g}" if math.isfinite(result.check) else "numbers that are not finite"
        output.say(
            f"{result.path}: logits differ by at most {differ} from the adapter's, both loaded anew in {result.dtype}"
        )
        for remark in result.remarks:
            output.say(remark)
        output.say("Load it with:")
        output.say(result.recipe)
    if not same:
        output.note("That is more than rounding explains: do not use it.")
        raise typer.Exit(1)
