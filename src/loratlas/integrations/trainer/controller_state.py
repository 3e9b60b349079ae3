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
from loratlas.training.checkpoint import Group, difference

if TYPE_CHECKING:
    import torch

STATE, TENSORS = "placement.json", "placement.safetensors"
SCHEMA, VERSION = "loratlas.trainer_placement", 1

GROUPS = (Group(("model",)), Group(("budget", "sites", "most"), ("placement", "budget")), Group(("policy",)))
"""What of an identity is compared first: another model has other sites, and other sites have another budget."""

TIMES = ("schedule", "steps", "decisions")
"""What of an identity says when a run decides, which is known once its length is."""


def write_state(
    folder: Path,
    *,
    identity: dict[str, Any],
    asked: dict[str, Any],
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
        "asked": asked,
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


def check_identity(
    folder: Path, document: dict[str, Any], now: dict[str, Any], asked: dict[str, Any]
) -> None:
    """Refuse a checkpoint of another run, whenever either decides.

    Args:
        folder: of the checkpoint. document: of `read_state`.
        now: identity of the run that is to go on. asked: its placement and budget, as they were typed.

    Raises:
        OutputError: naming what differs: the model, then its placement and budget, then all else.
    """
    kept, now = ({k: v for k, v in own.items() if k not in TIMES} for own in (document["identity"], now))
    now, asked = json.loads(json.dumps([now, asked]))
    found = difference(kept, now, GROUPS, before=document.get("asked", {}), asked=asked)
    if found is not None:
        raise OutputError(
            given=f"the checkpoint {folder}",
            found=f"it belongs to another run: {found}",
            instead="the model, policy, budget and placement that it began with, or another output_dir",
        )


def check_times(folder: Path, kept: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse a run that would decide at other steps than the one whose checkpoint it goes on from.

    Args:
        folder: of the checkpoint. kept, now: identities of both, once the steps of the run are known.

    Raises:
        OutputError: saying when both decide, and what keeps the decisions where they were.
    """
    before, later = kept.get("decisions"), now["decisions"]
    if before is None:  # written before steps were noted
        before, later = kept["schedule"], json.loads(json.dumps(now["schedule"]))
    if before == later:
        return
    if isinstance(before, dict):
        found, keeping = f"schedule was {before}, now {later}", "the head and decide that it began with"
    else:
        found = f"it decides after {_steps(before, kept)}, this run after {_steps(later, now)}"
        once = len(before) == len(later) == 1
        keeping = f"head={before[0]}" if once else f"max_steps={kept['steps']} with the same head and decide"
    raise OutputError(
        given=f"the checkpoint {folder}", found=found, instead=f"{keeping}, or another output_dir"
    )


def _steps(steps: list[int], identity: dict[str, Any]) -> str:
    named = f"{'step' if len(steps) == 1 else 'steps'} {', '.join(map(str, steps))}"
    return f"{named} of {identity['steps']}"


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
