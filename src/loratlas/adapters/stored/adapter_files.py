"""An adapter into a folder: what any tool that knows PEFT reads, and what loratlas wants to know again.

``adapter_config.json`` and ``adapter_model.safetensors`` are PEFT's own; ``loratlas.json`` says where the adapter came
from, and holds the SHA-256 of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.adapters.peft_targets import (
    adapted,
    module_names,
    renamed_leaves,
    restore_full_names,
    task_type,
)
from loratlas.adapters.stored.adapter_digests import base_digest, weights_sample, write_notes
from loratlas.adapters.stored.plain_lora import ordinary_state
from loratlas.adapters.stored.read_adapter import MARKER, WEIGHTS, refuse_nonfinite
from loratlas.files import whole_folder
from loratlas.modeling import unwrap

if TYPE_CHECKING:
    from peft import PeftModel


def save_adapter(
    peft_model: PeftModel,
    folder: str | Path,
    *,
    plan_json: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    adapter_name: str = "default",
) -> Path:
    """Write one adapter; the folder appears whole or not at all.

    An adapter that changed its base when it was put on (PiSSA, OLoRA) is written as the ordinary adapter of twice
    the rank that has the same effect on the unchanged base.

    Args:
        peft_model: with the adapter, on any device.
        folder: new, empty, or an earlier adapter, which is replaced.
        plan_json: of the plan, for ``loratlas.json``.
        extra: anything else for ``loratlas.json``; plain data.
        adapter_name: PEFT's name of it.

    Returns:
        The folder.

    Raises:
        ModelError: a number of the adapter is NaN or infinite; nothing is written then.
        OutputError: something else is there, or no permission.
        StorageError: the disk is full.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    state, config = ordinary_state(peft_model, adapter_name)
    written = _separate(state)
    refuse_nonfinite(written, given=f"the adapter for {folder}")
    config.inference_mode = True
    config.task_type = task_type(peft_model) or config.task_type  # pyright: ignore[reportAttributeAccessIssue]
    names = adapted(peft_model)
    parameters = {name for name, layer in names.items() if hasattr(layer, "parameter_name")}
    # PEFT cuts expressions and lists of a converted model to leaves; what was proven for it stays as it is.
    plain = not renamed_leaves(peft_model) and not config.layers_to_transform and not config.exclude_modules
    restore_full_names(
        config,
        [name for name in names if name not in parameters],
        sorted(parameters),
        module_names(peft_model) if plain else (),
    )
    notes = {
        "plan": dict(plan_json) if plan_json else None,
        "base_digest": base_digest(peft_model),
        "base_weights": weights_sample(peft_model),
        "dtype": _base_dtype(peft_model),
        "extra": dict(extra or {}),
        "versions": {name: version(name) for name in ("loratlas", "peft", "torch", "transformers")},
    }
    with whole_folder(folder, marker=MARKER) as new:
        save_file(written, new / WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(str(new))
        write_notes(new, notes, (MARKER, WEIGHTS))
    return folder


def _separate(state: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors on the CPU, those that several names share once for each name, as the format wants them."""
    seen: set[int] = set()
    written = {}
    for name, tensor in state.items():
        tensor = tensor.detach().to("cpu").contiguous()
        written[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return written


def _base_dtype(model: Any) -> str | None:
    """Numbers of the frozen base under an adapter; None where they are quantised or of another type."""
    base = unwrap(model)
    name = str(getattr(base, "dtype", "")).removeprefix("torch.")
    return name if name in ("float32", "bfloat16") and not getattr(base, "is_quantized", False) else None
