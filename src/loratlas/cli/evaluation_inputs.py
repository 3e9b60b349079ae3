"""What commands that evaluate a model share: rows, device, folder of the result, progress."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.cli import output

if TYPE_CHECKING:
    from loratlas.data.rows import Rows


def rows_to_judge(data: str, *, split: str | None, columns: Mapping[str, str], limit: int | None) -> Rows:
    """Rows to measure a loss on: of an embedded task those for evaluation, unless a split is named."""
    from loratlas.sources import judged_split, open_rows

    return open_rows(data, split=judged_split(data, split), mapping=columns, limit=limit)


def to_device(model: Any) -> Any:
    """Move a model to the GPU, if there is one; a quantised base is there already."""
    import torch

    from loratlas.modeling import unwrap

    if torch.cuda.is_available() and not getattr(unwrap(model), "is_quantized", False):
        return model.to("cuda")
    return model


def check_result_folder(out: Path | None) -> None:
    """Refuse an output folder that holds something else than an evaluation, before anything is loaded.

    Raises:
        OutputError: it is a file, holds other things, or cannot be written to.
    """
    from loratlas.cli.folders import check_out
    from loratlas.evaluation.result_folder import OWN
    from loratlas.files import is_leftover

    drafts = [p.name for p in out.iterdir() if is_leftover(p)] if out is not None and out.is_dir() else []
    check_out(out, mine=(*OWN, *drafts))


@contextmanager
def workspace(out: Path | None) -> Iterator[Path]:
    """The folder to write tables to: the one that was asked for, or one that is gone afterwards."""
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="loratlas-") as folder:
        yield Path(folder)


@contextmanager
def watch(examples: int) -> Iterator[Any]:
    """A progress bar over the examples of a pass."""
    with output.Progress("scoring", total=examples, unit="rows") as bar:
        yield lambda rows: bar.to(rows, "")
