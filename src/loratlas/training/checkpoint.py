"""The state of a run on disk: whole or not there, the last one kept until the next is whole, every byte accounted for.

    checkpoint/step-00000100/state.safetensors   masters, moments, the masters before the last update
                             state.json          counts, curve, what run this is
                             sha256.json         of the two

Nothing random is kept: order and dropout masks follow from the seed and the step.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.errors import OutputError
from loratlas.files import parse_json, read_json, remove_leftovers, storing, whole_folder

if TYPE_CHECKING:
    import torch

FOLDER, TENSORS, STATE, SHA256 = "checkpoint", "state.safetensors", "state.json", "sha256.json"
SCHEMA, VERSION = "loratlas.checkpoint", 2


class SaveSchedule:
    """When a checkpoint is due: every so many steps, and so many seconds after the last one.

    Args:
        every: steps.
        seconds: since the last checkpoint, or since the run began.
        clock: seconds.

    >>> schedule = SaveSchedule(100, 60.0, clock=iter([0.0, 59.0, 60.0, 61.0, 90.0]).__next__)
    >>> schedule.due(1), schedule.due(2)
    (False, True)
    >>> schedule.saved()
    >>> schedule.due(3), schedule.due(200)
    (False, True)
    """

    def __init__(self, every: int, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._every, self._seconds, self._clock = every, seconds, clock
        self._saved_at = clock()

    def due(self, done: int) -> bool:
        """Whether one is due after so many steps."""
        return done % self._every == 0 or self._clock() - self._saved_at >= self._seconds

    def saved(self) -> None:
        """One was written just now."""
        self._saved_at = self._clock()


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
        document = {
            "schema": SCHEMA,
            "version": VERSION,
            "identity": self._identity,
            "step": step,
            "state": state,
        }
        contents = {
            TENSORS: save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}),
            STATE: json.dumps(document).encode(),
        }
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        # Without a space: then no bit of it can flip and leave it readable.
        contents[SHA256] = json.dumps(digests, separators=(",", ":")).encode()
        with storing(target):
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder)
        with whole_folder(target, marker=None) as draft:
            for name, content in contents.items():
                (draft / name).write_bytes(content)
        for path in self._steps():
            if path != target:
                shutil.rmtree(path, ignore_errors=True)

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """The last checkpoint (tensors, state), or None.

        Raises:
            OutputError: it belongs to another run, or is not what was written.
        """
        from safetensors.torch import load

        if not self.folder.is_dir():
            return None
        with storing(self.folder):
            remove_leftovers(self.folder)
        steps = self._steps()
        if not steps:
            return None
        last = steps[-1]
        contents = _contents(last)
        try:
            document = parse_json(contents[STATE])
            if (document["schema"], document["version"]) != (SCHEMA, VERSION):
                raise _damaged(last, f"another version wrote it ({document['schema']} {document['version']})")
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(last, f"it cannot be read ({type(error).__name__})") from error
        differing = _differences(document["identity"], self._identity)
        if differing:
            raise OutputError(
                given=f"--resume with the checkpoint {last}",
                found=f"it belongs to another run: {differing[0]}",
                instead="the settings, model and rows it began with, or another output folder",
            )
        return load(contents[TENSORS]), document["state"]

    def _steps(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []


def has_checkpoint(out: Path) -> bool:
    """Whether a run's folder holds a whole checkpoint."""
    return any((out / FOLDER).glob("step-*"))


def describe_base(model: Any, *, weights: str | None = None) -> dict[str, Any]:
    """What a run stands on and its settings do not say: the numbers of the base, and the scale of every adapter.

    Args:
        model: a `PeftModel`, or a model with trainable parameters of its own.
        weights: `weights_digest`, where it is known already.
    """
    from loratlas.adapters.peft_targets import adapted

    known: dict[str, Any] = {"weights": weights_digest(model) if weights is None else weights}
    scales = {path: dict(layer.scaling) for path, layer in adapted(model).items()}
    known["scaling"] = {path: scale["default"] for path, scale in scales.items() if "default" in scale}
    for name, config in getattr(model, "peft_config", {}).items():
        known[f"adapter {name}"] = {
            "alpha": getattr(config, "lora_alpha", None),
            "rslora": getattr(config, "use_rslora", None),
            **({"dora": True} if getattr(config, "use_dora", False) else {}),
        }
    quantised = getattr(model.config, "quantization_config", None)
    if quantised is not None:
        plain = quantised if isinstance(quantised, dict) else quantised.to_dict()
        known["quantization"] = json.loads(json.dumps(plain, default=str, sort_keys=True))
    return known


def weights_digest(model: Any) -> str:
    """SHA-256 over the names, types, shapes and bytes of all that a model holds and does not train.

    Args:
        model: bare or as a `PeftModel`; the same base has the same digest under any adapter.
    """
    import torch

    whole = hashlib.sha256()
    frozen = [(name, p) for name, p in model.named_parameters() if not p.requires_grad]
    for name, tensor in sorted([*frozen, *model.named_buffers()], key=lambda pair: _plain(pair[0])):
        whole.update(f"{_plain(name)} {tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.detach().to("cpu", copy=False).contiguous().reshape(-1).view(torch.uint8)
        whole.update(memoryview(flat.numpy()))
    return whole.hexdigest()


def _plain(name: str) -> str:
    """A parameter's name without what PEFT puts around and inside it."""
    return re.sub(r"\.(base_layer|original_module)(?=\.)", "", name.removeprefix("base_model.model."))


def _contents(folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint, every byte as it was written."""
    try:
        digests = read_json(folder / SHA256)
        contents = {name: (folder / name).read_bytes() for name in (TENSORS, STATE)}
    except (OSError, ValueError) as error:
        raise _damaged(folder, f"it cannot be read ({type(error).__name__})") from error
    for name, content in contents.items():
        if not isinstance(digests, dict) or digests.get(name) != hashlib.sha256(content).hexdigest():
            raise _damaged(folder, f"{name} is not what was written: its SHA-256 differs")
    return contents


def _damaged(folder: Path, found: str) -> OutputError:
    return OutputError(
        given=f"the checkpoint {folder}", found=found, instead="another output folder, without --resume"
    )


def _differences(kept: dict[str, Any], wanted: dict[str, Any], at: str = "") -> list[str]:
    """Leaves that differ, in words."""
    differing: list[str] = []
    for name in sorted(kept.keys() | wanted.keys()):
        before, now = kept.get(name), wanted.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            differing += _differences(before, now, f"{at}{name}.")
        elif before != now:
            differing.append(f"{at}{name} was {before!r}, now {now!r}")
    return differing
