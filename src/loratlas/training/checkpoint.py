"""The state of a run on disk: safetensors and JSON, whole or not there, the last one kept until the next is whole.

    checkpoint/step-00000100/state.safetensors   masters, moments, the masters before the last update
                             state.json          counts, curve, what run this is

Nothing random is kept: order and dropout masks follow from the seed and the step.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.errors import OutputError
from loratlas.files import storing

if TYPE_CHECKING:
    import torch

FOLDER, TENSORS, STATE = "checkpoint", "state.safetensors", "state.json"
SCHEMA, VERSION = "loratlas.checkpoint", 1


class Checkpoints:
    """The checkpoints of one run.

    Args:
        out: the run's folder.
        identity: plain data that another run would not share; a checkpoint is only taken up by its own run.
    """

    def __init__(self, out: Path, *, identity: dict[str, Any]) -> None:
        self.folder = out / FOLDER
        self._identity = json.loads(json.dumps(identity))

    def save(self, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Write a checkpoint, then remove older ones.

        Raises:
            StorageError: the disk is full or not writable; the checkpoint before stays.
        """
        from safetensors.torch import save

        target = self.folder / f"step-{step:08d}"
        draft = self.folder / f".draft-{os.getpid()}"
        document = {
            "schema": SCHEMA,
            "version": VERSION,
            "identity": self._identity,
            "step": step,
            "state": state,
        }
        with storing(target):
            self.folder.mkdir(parents=True, exist_ok=True)
            # What a killed process left behind.
            for path in self.folder.glob(".draft-*"):
                shutil.rmtree(path, ignore_errors=True)
            draft.mkdir()
            try:
                _write(draft / TENSORS, save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))
                _write(draft / STATE, json.dumps(document).encode())
                if target.exists():
                    # The same step again, after a resumed run: the older one has the same contents.
                    shutil.rmtree(target)
                draft.rename(target)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        for path in self._steps():
            if path != target:
                shutil.rmtree(path, ignore_errors=True)

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """The last checkpoint (tensors, state), or None.

        Raises:
            OutputError: it belongs to another run, or cannot be read.
        """
        from safetensors.torch import load_file

        steps = self._steps()
        if not steps:
            return None
        last = steps[-1]
        try:
            document = json.loads((last / STATE).read_text(encoding="utf-8"))
            tensors = load_file(last / TENSORS)
        except Exception as error:  # the file was damaged from outside: safetensors has errors of its own
            raise OutputError(
                given=f"the checkpoint {last}",
                found=f"it cannot be read ({type(error).__name__})",
                instead="another output folder, or the same without --resume",
            ) from error
        differing = _differences(document.get("identity", {}), self._identity)
        if differing:
            raise OutputError(
                given=f"--resume with the checkpoint {last}",
                found=f"it belongs to another run: {differing[0]}",
                instead="the settings, model and rows it began with, or another output folder",
            )
        return tensors, document["state"]

    def _steps(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _differences(kept: dict[str, Any], wanted: dict[str, Any], at: str = "") -> list[str]:
    """Leaves that differ, in words."""
    found: list[str] = []
    for name in sorted(kept.keys() | wanted.keys()):
        before, now = kept.get(name), wanted.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            found += _differences(before, now, f"{at}{name}.")
        elif before != now:
            found.append(f"{at}{name} was {before!r}, now {now!r}")
    return found
