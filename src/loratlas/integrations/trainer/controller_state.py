"""What a placement controller adds to a trainer's checkpoint.

    checkpoint-100/placement.json           ranks, decisions, what run this is
                   placement.safetensors    statistics, ages of moments

The trainer's own files hold weights, moments, schedule and random streams; `placement.json` has the ranks that the
model must have before it can load them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.errors import OutputError
from loratlas.files import write_bytes
from loratlas.sealed_json import ChangedError, read_sealed, write_sealed

if TYPE_CHECKING:
    import torch

STATE, TENSORS = "placement.json", "placement.safetensors"
SCHEMA, VERSION = "loratlas.trainer_placement", 1


def write_state(
    folder: Path,
    *,
    identity: dict[str, Any],
    ranks: dict[str, int],
    values: dict[str, Any],
    tensors: dict[str, torch.Tensor],
) -> None:
    """Write both files; the one that says that they are whole comes last.

    Raises:
        StorageError: the disk is full or not writable.
    """
    from safetensors.torch import save

    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    write_bytes(folder / TENSORS, content)
    document = {
        "schema": SCHEMA,
        "version": VERSION,
        "identity": identity,
        "ranks": ranks,
        "values": values,
    }
    write_sealed(folder / STATE, document, files=(TENSORS,))


def read_state(folder: Path) -> dict[str, Any]:
    """`placement.json` of a checkpoint.

    Raises:
        OutputError: there is none, or it is not what was written.
    """
    if not (folder / STATE).is_file():
        raise OutputError(
            given=f"the checkpoint {folder}",
            found=f"no {STATE}, so that it is of a run without DynamicPlacement, or was not written to its end",
            instead="another checkpoint, or this one without DynamicPlacement",
        )
    try:
        document = read_sealed(folder / STATE)
    except (OSError, ChangedError) as error:
        raise _damaged(folder, f"{STATE}: {error}") from error
    if (document.get("schema"), document.get("version")) != (SCHEMA, VERSION):
        raise _damaged(folder, f"another version wrote {STATE}")
    return document


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, whose digest `read_state` has compared.

    Raises:
        OutputError: they cannot be read.
    """
    from safetensors.torch import load

    try:
        return load((folder / TENSORS).read_bytes())
    except OSError as error:
        raise _damaged(folder, f"{TENSORS} cannot be read ({type(error).__name__})") from error


def check_identity(folder: Path, kept: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse a checkpoint of another run.

    Raises:
        OutputError: naming what differs first.
    """
    now = json.loads(json.dumps(now))
    for name in sorted(kept.keys() | now.keys()):
        if kept.get(name) != now.get(name):
            raise OutputError(
                given=f"the checkpoint {folder}",
                found=f"it belongs to another run: {name} was {_short(kept.get(name))}, now {_short(now.get(name))}",
                instead="the model, policy, budget, head and decide that it began with, or another output_dir",
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:77]}…"


def _damaged(folder: Path, found: str) -> OutputError:
    return OutputError(
        given=f"the checkpoint {folder}", found=found, instead="an older checkpoint of this run"
    )


def checkpoint_asked_for(trainer: Any, resume: Any) -> Path | None:
    """The checkpoint that ``trainer.train(resume)`` goes on from; None for a run from the beginning."""
    from transformers.trainer_utils import get_last_checkpoint

    if resume is True:
        resume = get_last_checkpoint(trainer.args.output_dir)
    return Path(resume) if resume else None
