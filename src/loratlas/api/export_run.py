"""`loratlas.export`: hand an adapter on, and prove that what was written computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from loratlas.api.folders import adapter_folder, check_out

if TYPE_CHECKING:
    from loratlas.adapters.export.export_adapter import Export
    from loratlas.api.results import Run


def export(
    adapter: str | Path | Run, out: str | Path, *, target: str = "peft", base: str | None = None
) -> Export:
    """Write an adapter for other tools, load it again in a fresh process, and compare the logits.

    Args:
        adapter: a run, its folder, or any PEFT adapter's folder.
        out: a new folder.
        target: ``"peft"``, or ``"merged"`` for the whole model with the adapter added in.
        base: where the base lies, if elsewhere than the adapter says.

    Returns:
        The folder, the largest difference of logits, and how to load it.

    Raises:
        ModelError: no adapter there, or one of another kind. OutputError: something lies in ``out``.

    >>> import loratlas
    >>> loratlas.export("nowhere", "out")
    Traceback (most recent call last):
    loratlas.errors.ModelError: ...
    """
    from loratlas.adapters.export.export_adapter import export as write
    from loratlas.api.results import Run
    from loratlas.sources import model_source

    folder = adapter_folder(adapter.adapter if isinstance(adapter, Run) else Path(adapter))
    check_out(Path(out), what="export")
    return write(folder, out, target=target, base=model_source(base) if base else None)
