"""`export`: hand an adapter on, and prove that what was written computes the same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loratlas.cli import options, output
from loratlas.cli.base_name import Base, base_named

if TYPE_CHECKING:
    from loratlas.adapters.export.export_adapter import Export

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
            help="peft: the adapter in PEFT's own format; an engine: in the form that it reads right; merged: the "
            "whole model with the adapter added in; gguf: that as one file.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ],
    out: options.Out,
    base: Base = None,
    rank_tolerance: Annotated[
        float | None,
        typer.Option(
            "--rank-tolerance",
            metavar="SHARE",
            help="For an engine with one rank: cut larger ranks by their singular values, losing at most this share of "
            "a matrix' change; nothing is cut unless given.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="Rows on which the loss before and after such a cut is measured.",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option(
            "--study",
            metavar="DIR",
            help="A study whose findings go into the model card.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    push_to: Annotated[
        str | None,
        typer.Option(
            "--push-to",
            metavar="OWNER/NAME",
            help="Upload the folder to the Hub, with the token of this machine; never done unless asked.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Write an adapter for an engine or another tool with a model card, and compare it with what was trained.

    check is the largest difference of logits on fixed tokens between what was trained and what was written, where PEFT
    can load it; the numbers of a GGUF model are compared themselves.
    """
    from loratlas.api.export_run import export as write

    result = write(
        adapter,
        out,
        target=target.value,
        base=base_named(base),
        rank_tolerance=rank_tolerance,
        data=data,
        study=study,
        push_to=push_to,
    )
    # False for NaN as well; what was cut on purpose differs.
    same = result.check <= TOLERANCE or result.lost > 0
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
                "compared": result.compared,
                "bytes": result.bytes,
                "padding_bytes": result.padding_bytes,
                "lost": result.lost,
                "loss": None if result.loss is None else {"before": result.loss[0], "after": result.loss[1]},
            }
        )
    else:
        output.say(f"{result.path}: {_compared(result)}")
        if result.lost:
            output.say(f"Cutting ranks has lost at most {result.lost:.1%} of a matrix' change.")
        if result.loss is not None:
            before, after = result.loss
            output.say(f"Loss {before:.4f} → {after:.4f} nats per token ({after - before:+.4f}).")
        for remark in result.remarks:
            output.say(remark)
        output.say(
            "Load it with:" if target in (options.Target.peft, options.Target.merged) else "Serve it with:"
        )
        output.say(result.recipe)
    if not same:
        output.note("That is more than rounding explains: do not use it.")
        raise typer.Exit(1)


def _compared(result: Export) -> str:
    differ = f"{result.check:.2g}" if math.isfinite(result.check) else "numbers that are not finite"
    if result.compared == "logits":
        return f"logits differ by at most {differ} from the adapter's, both loaded anew in {result.dtype}"
    if result.compared == "numbers in the file":
        return f"its numbers differ by at most {differ} (relative) from the merged model's"
    return (
        "read right by the engine's own rule; PEFT does not load this format, so that no logits were compared"
    )
