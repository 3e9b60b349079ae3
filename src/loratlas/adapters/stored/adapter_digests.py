"""SHA-256 of the files of an adapter, kept in its ``loratlas.json``, which is sealed by its own.

A digest tells one flipped bit from none. The file that holds the digests holds one of itself as well, taken with 64
zeros in its place.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from loratlas.errors import ModelError
from loratlas.files import parse_json, sha256
from loratlas.sealed_json import ChangedError, check_seal, sealed

NOTES = "loratlas.json"
SCHEMA = "loratlas.adapter"
VERSION = 2
"""Since 2 the digests are there. Version 1 had none."""


def base_digest(model: Any) -> str | None:
    """Digest of a live model's config; None for a model without one."""
    from loratlas.anatomy.config_sizes import config_digest

    config: Any = getattr(model, "config", None)
    return config_digest(copy.deepcopy(config)) if hasattr(config, "to_dict") else None


SAMPLED = 64
"""Numbers of a matrix that the digest of a base's weights holds."""

_ADDED = re.compile(r"\.(base_layer|original_module)(?=\.)")


def weights_sample(model: Any) -> str | None:
    """A digest that differs for other weights: 64 numbers of every matrix of every layer, rounded to bfloat16.

    It costs nothing to speak of at any size, is the same whatever of float32 and bfloat16 the base was loaded in and
    whatever adapters it carries, and covers no embedding, head, norm or bias. It does not find a single flipped bit.

    Args:
        model: bare or as a `PeftModel`.

    Returns:
        16 hex digits; None for a base that is quantised, not loaded, or changed by its adapter (PiSSA, OLoRA).
    """
    import torch

    from loratlas.modeling import unwrap

    configs = getattr(model, "peft_config", {}).values()
    if any(
        str(c.init_lora_weights).startswith(("pissa", "olora", "corda", "loftq", "lora_ga")) for c in configs
    ):
        return None
    if getattr(unwrap(model), "is_quantized", False):
        return None
    whole = hashlib.sha256()
    sampled = 0
    named = {
        _ADDED.sub("", name.removeprefix("base_model.model.")): p for name, p in model.named_parameters()
    }
    for name, parameter in sorted(named.items()):
        in_layer = any(part.isdigit() for part in name.split("."))
        if not in_layer or parameter.dim() < 2 or parameter.requires_grad or ".lora_" in name:
            continue
        if parameter.device.type == "meta" or not parameter.is_floating_point():
            return None
        flat = parameter.detach().reshape(-1)
        few = flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].to("cpu", torch.bfloat16)
        whole.update(name.encode() + few.contiguous().view(torch.uint8).numpy().tobytes())
        sampled += 1
    return whole.hexdigest()[:16] if sampled else None


def write_notes(folder: Path, notes: Mapping[str, Any], files: Iterable[str]) -> None:
    """Write ``loratlas.json`` with the digests of the files beside it and its own.

    Args:
        folder: with the files, as they stay.
        notes: plain data.
        files: names of the files.
    """
    whole = {
        "schema": SCHEMA,
        "version": VERSION,
        **notes,
        "sha256": {name: sha256(folder / name) for name in files},
    }
    (folder / NOTES).write_text(sealed(whole), encoding="utf-8")


def read_notes(folder: Path) -> dict[str, Any]:
    """What ``loratlas.json`` says, after every digest in it was found right; empty where there is no such file.

    Raises:
        ModelError: the file is broken, or a file differs from what was written.
    """
    path = folder / NOTES
    if not path.is_file():
        return {}
    try:
        raw = path.read_bytes()
        notes = parse_json(raw)
    except (ValueError, OSError) as error:
        raise _changed(path, f"not readable: {str(error)[:100]}") from error
    if (
        not isinstance(notes, dict)
        or notes.get("schema") != SCHEMA
        or notes.get("version") not in (1, VERSION)
    ):
        raise _changed(path, "another schema or version than this loratlas reads")
    if notes["version"] == 1:
        if "seal" in notes or "sha256" in notes:
            raise _changed(path, "version 1 with digests, which it never had")
        return notes
    try:
        check_seal(raw, notes)
    except ChangedError as error:
        raise _changed(path, str(error)) from error
    for name, digest in notes["sha256"].items():
        file = folder / Path(name).name
        if not file.is_file() or sha256(file) != digest:
            raise _changed(
                file, "another content than was written: its SHA-256 differs from the one in loratlas.json"
            )
    return notes


def _changed(path: Path, found: str) -> ModelError:
    return ModelError(
        given=str(path),
        found=found,
        instead=f"the folder as it was written; or, for an adapter that was changed on purpose, one without {NOTES}",
    )
