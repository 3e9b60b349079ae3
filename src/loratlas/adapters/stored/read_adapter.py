"""An adapter's folder, read without a model: what it is, what it holds, and whether it is as it was written.

Nothing is allocated here but the config, the names and the shapes; a pickle is never opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.adapters.stored.adapter_digests import read_notes
from loratlas.adapters.stored.expressions import pattern_value, slow
from loratlas.adapters.stored.lora_options import base_changed_by, check_kind, read_config, too_long
from loratlas.adapters.stored.safetensors_header import TensorEntry, read_header
from loratlas.errors import ModelError

if TYPE_CHECKING:
    import torch

MARKER = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."

_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFolder:
    """What an adapter's folder holds.

    Args:
        folder: where it lies.
        config: ``adapter_config.json``.
        tensors: of ``adapter_model.safetensors``, by PEFT's names.
        notes: ``loratlas.json``; empty for an adapter of another tool.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorEntry]
    notes: dict[str, Any]

    @property
    def base(self) -> str | None:
        """The base that it names."""
        name = self.config.get("base_model_name_or_path")
        return name if isinstance(name, str) and name else None

    @property
    def changed_base(self) -> str | None:
        """The initialisation that took its first factors out of the base, if one did."""
        return base_changed_by(self.config)

    @property
    def dtype(self) -> str | None:
        """Numbers of the base that it was trained on; None where nothing says so."""
        settings = (self.notes.get("extra") or {}).get("settings") or {}
        return settings.get("dtype") or self.notes.get("dtype")

    @property
    def whole_tensors(self) -> dict[str, TensorEntry]:
        """Tensors that are no factors, by their names in the bare model: heads, embeddings, norms, biases."""
        return {
            name.removeprefix(PREFIX): entry
            for name, entry in self.tensors.items()
            if ".lora_" not in name and ".token_adapter." not in name
        }

    def read(self) -> dict[str, torch.Tensor]:
        """The tensors themselves, on the CPU.

        Raises:
            ModelError: a number in them is NaN or infinite.
        """
        from safetensors import safe_open

        tensors = {}
        with safe_open(self.folder / WEIGHTS, framework="pt", device="cpu") as file:
            for name in self.tensors:
                tensors[name] = file.get_tensor(name)
        refuse_nonfinite(tensors, given=str(self.folder / WEIGHTS))
        return tensors


def read_adapter(folder: str | Path) -> AdapterFolder:
    """Read an adapter's folder, and refuse one that is no ordinary LoRA or not as it was written.

    Args:
        folder: as PEFT or :func:`loratlas.adapters.stored.adapter_files.save_adapter` writes it.

    Raises:
        ModelError: there is no adapter, another kind of adapter, a file that is broken or was changed, or tensors
            that contradict the config.
    """
    folder = Path(folder)
    refuse_without_config(folder)
    notes = read_notes(folder)  # first: a file that was changed is not worth reading
    config = read_config(folder)
    check_kind(config, folder)
    refuse_without_weights(folder)
    contents = AdapterFolder(folder=folder, config=config, tensors=read_header(folder / WEIGHTS), notes=notes)
    refuse_slow(config, contents.tensors, folder)
    for problem in _problems(contents):
        raise ModelError(
            given=str(folder / WEIGHTS),
            found=problem,
            instead="the adapter's files as they were written together",
        )
    return contents


def refuse_without_config(folder: Path) -> None:
    """Refuse a folder that is no adapter's.

    Raises:
        ModelError: ``adapter_config.json`` is missing.
    """
    if not (folder / MARKER).is_file():
        raise ModelError(
            given=str(folder),
            found=f"no {MARKER} with {WEIGHTS}",
            instead="the adapter folder that `loratlas train` names",
        )


def refuse_without_weights(folder: Path) -> None:
    """Refuse an adapter without weights that can be read safely; a pickle is never opened.

    Raises:
        ModelError: ``adapter_model.safetensors`` is missing.
    """
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        raise ModelError(
            given=str(folder),
            found="weights as adapter_model.bin alone, a pickle, which can run code when it is opened"
            if pickled
            else f"{MARKER} without {WEIGHTS}",
            instead=f"the adapter saved by PEFT as {WEIGHTS} (save_pretrained does so by default)",
        )


def refuse_slow(config: Mapping[str, Any], tensors: Iterable[str], folder: Path) -> None:
    """Refuse expressions that take too long on the names of an adapter's own tensors.

    Raises:
        ModelError: one does.
    """
    modules = dict.fromkeys(name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in tensors)
    problem = slow(config, modules)
    if problem is not None:
        raise too_long(problem, folder)


def refuse_nonfinite(tensors: dict[str, Any], *, given: str) -> None:
    """Refuse tensors that hold a NaN or an infinite number.

    Raises:
        ModelError: one does.
    """
    import torch

    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                given=given,
                found=f"NaN or infinite numbers in {name[:200]}",
                instead="an adapter of a run that did not diverge (a lower learning rate, a longer warm-up)",
            )


def _problems(contents: AdapterFolder) -> Iterator[str]:
    """Where types and shapes of the tensors cannot be what the config says."""
    if not contents.tensors:
        yield "no tensor in it"
    for name, entry in contents.tensors.items():
        if entry.dtype not in _FLOATS:
            yield f"{name[:200]} of type {entry.dtype}; factors are {', '.join(_FLOATS)}"
        if 0 in entry.shape:
            yield f"{name[:200]} of shape {entry.shape}, without a number"
        if not entry.shape:
            yield f"{name[:200]} of shape (), a single number"
        elif name.endswith((".lora_A.weight", ".lora_B.weight")):
            yield from _rank_problem(contents, name, entry)


def _rank_problem(contents: AdapterFolder, name: str, entry: TensorEntry) -> Iterator[str]:
    config = contents.config
    module = name.removeprefix(PREFIX).rpartition(".lora_")[0]
    patterns = config.get("rank_pattern") or {}
    rank = pattern_value(patterns, module, config.get("r", 8))
    own = entry.shape[0 if ".lora_A." in name else -1]
    if own == rank:
        return
    # The factors of all experts of a stack are one tensor, and a nested name hides the parameter's own.
    if config.get("target_parameters"):
        if any(own % each == 0 for each in {config.get("r", 8), *patterns.values()}):
            return
        yield f"{name[:200]} of shape {entry.shape}, where {MARKER} has rank {rank}"
        return
    yield f"{name[:200]} of shape {entry.shape}, where {MARKER} has rank {rank}"
