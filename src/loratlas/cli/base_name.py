"""MODEL on the command line: the base that it stands for, and a remark where that is not what was written."""

from __future__ import annotations

from typing import Annotated, overload

import typer

from loratlas.cli import options, output

Base = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="MODEL",
        help="The base, if it is not where the adapter says; where no weights are needed, a config.json is enough.",
        rich_help_panel=options.PLACEMENT,
    ),
]
"""For commands that are given an adapter."""


@overload
def base_named(model: str) -> str: ...
@overload
def base_named(model: None) -> None: ...
def base_named(model: str | None) -> str | None:
    """The base that MODEL stands for; how it is read is remarked on standard error.

    Args:
        model: as written; None where an option was left out.

    Raises:
        ModelError: see :func:`loratlas.sources.named_base`.

    >>> base_named("demo:llama-mini")
    'demo:llama-mini'
    """
    if model is None:
        return None
    from loratlas.sources import named_base

    named = named_base(model)
    if named.note:
        output.note(named.note)
    return str(named.model)
