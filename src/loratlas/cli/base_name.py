"""MODEL on the command line: the base that it stands for, and a remark where that is not what was written."""

from __future__ import annotations

from typing import overload

from loratlas.cli import output


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
