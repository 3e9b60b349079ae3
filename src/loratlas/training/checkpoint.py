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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from loratlas.errors import OutputError
from loratlas.files import parse_json, read_json, remove_leftovers, storing, whole_folder

if TYPE_CHECKING:
    import torch

FOLDER, TENSORS, STATE, SHA256 = "checkpoint", "state.safetensors", "state.json", "sha256.json"
SCHEMA, VERSION = "loratlas.checkpoint", 2


class Group(NamedTuple):
    """What of a run's identity follows from some words that people type.

    Args:
        leaves: names, or beginnings of names up to a point or a blank; those first that say it best.
        words: names of what was typed.
    """

    leaves: tuple[str, ...]
    words: tuple[str, ...] = ()


GROUPS = (
    Group(("settings.dtype", "base.quantization", "base.weights"), ("model",)),
    Group(
        ("base.adapter", "hooks.placement.budget", "hooks.placement.sites", "parameters", "base.scaling"),
        ("placement", "budget"),
    ),
    Group(("hooks",)),
)
"""What is compared first: another base has other sites, and other sites have other scales and shapes."""

SHORT = 80
"""Characters of a value that a sentence has room for."""


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
        asked: name → what was typed (``model``, ``placement``, ``budget``), which is not compared but said where it is
            why an identity differs.
    """

    def __init__(
        self, out: Path, *, identity: dict[str, Any], asked: Mapping[str, str | None] | None = None
    ) -> None:
        self.folder = out / FOLDER
        self._identity, self._asked = json.loads(json.dumps(identity)), dict(asked or {})

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
            "asked": self._asked,
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
        before = document.get("asked", {})
        found = difference(document["identity"], self._identity, GROUPS, before=before, asked=self._asked)
        if found is not None:
            raise OutputError(
                given=f"--resume with the checkpoint {last}",
                found=f"it belongs to another run: {found}",
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


def difference(
    kept: Mapping[str, Any],
    now: Mapping[str, Any],
    groups: Sequence[Group],
    *,
    before: Mapping[str, Any],
    asked: Mapping[str, Any],
) -> str | None:
    """How a run differs from another one, in words; None where it does not.

    Args:
        kept, now: identities of both.
        groups: what is looked at first, in this order; all else comes after.
        before, asked: what was typed for both; of words that one of them lacks nothing is said.

    >>> groups = [Group(("sites", "rank"), ("placement",))]
    >>> typed = {"before": {"placement": "all:1"}, "asked": {"placement": "all:2"}}
    >>> difference({"lr": 0.1, "rank": 1}, {"lr": 0.2, "rank": 2}, groups, **typed)
    "placement was 'all:1', now 'all:2'"
    >>> difference({"lr": 0.1, "rank": 1}, {"lr": 0.2, "rank": 1}, groups, **typed)
    'lr was 0.1, now 0.2'
    """
    leaves = _leaves(kept, now)
    for group in groups:
        own = [name for leaf in group.leaves for name in leaves if _under(name, leaf)]
        if not own:
            continue
        typed = [
            _was(word, before[word], asked[word])
            for word in group.words
            if word in before and word in asked and before[word] != asked[word]
        ]
        return "; ".join(typed) or _was(own[0], *leaves[own[0]])
    return next((_was(name, *pair) for name, pair in leaves.items()), None)


def _leaves(kept: Mapping[str, Any], now: Mapping[str, Any], at: str = "") -> dict[str, tuple[Any, Any]]:
    """Name → (before, now) of what differs; what one of both lacks is None there."""
    leaves: dict[str, tuple[Any, Any]] = {}
    for name in sorted(kept.keys() | now.keys()):
        pair = kept.get(name), now.get(name)
        if any(isinstance(one, dict) for one in pair) and all(
            one is None or isinstance(one, dict) for one in pair
        ):
            leaves |= _leaves(pair[0] or {}, pair[1] or {}, f"{at}{name}.")
        elif pair[0] != pair[1]:
            leaves[f"{at}{name}"] = pair
    return leaves


def _under(name: str, leaf: str) -> bool:
    return name == leaf or name.startswith((f"{leaf}.", f"{leaf} "))


def _was(name: str, before: Any, now: Any) -> str:
    return f"{name} was {_short(before)}, now {_short(now)}"


def _short(value: Any) -> str:
    text = "none" if value is None else repr(value)
    return text if len(text) <= SHORT else f"{text[: SHORT - 1]}…"
