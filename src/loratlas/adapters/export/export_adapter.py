"""Handing adapters over: plain PEFT folders and merged models, each checked on a base that a fresh process loads."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loratlas.adapters.export.check_export import Request, in_fresh_process
from loratlas.adapters.export.loading_recipe import adapter_recipe, base_options, class_name, model_recipe
from loratlas.adapters.export.merge_adapter import adapted_base, save_merged
from loratlas.adapters.stored.adapter_files import save_adapter
from loratlas.adapters.stored.adapter_task import open_base_config
from loratlas.adapters.stored.read_adapter import AdapterFolder, read_adapter
from loratlas.errors import ModelError, OutputError
from loratlas.models.config import load_config
from loratlas.models.gguf_base import readable
from loratlas.models.labels import own_labels
from loratlas.models.task import CLASSIFICATION

FORMATS = ("peft", "merged")


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What was written, and how far it computes the same.

    Args:
        path: the folder.
        check: largest absolute difference between the logits of base + adapter and of what was written, each loaded
            anew in a fresh process; NaN where a logit is not finite.
        dtype: numbers of the base in that comparison.
        recipe: lines of Python that load it.
        remarks: sentences about what is not as the adapter's files say.
        compared: what ``check`` is the difference of.
        bytes: of the factors; 0 where they were written as they are.
        padding_bytes: how many of them are zeros that an engine wants.
        lost: largest share of a site's change that cutting ranks has lost.
        loss: of the adapter before and after cutting, nats per token; None where it was not measured.
    """

    path: str
    check: float
    dtype: str
    recipe: str
    remarks: tuple[str, ...] = ()
    compared: str = "logits"
    bytes: int = 0
    padding_bytes: int = 0
    lost: float = 0.0
    loss: tuple[float, float] | None = None


def export(
    adapter_dir: str | Path,
    out: str | Path,
    *,
    target: str = "peft",
    base: str | Path | None = None,
    dtype: str = "float32",
    final: Path | None = None,
) -> Export:
    """Write an adapter for other tools, load what was written in a fresh process, and compare.

    Args:
        adapter_dir: the adapter, of loratlas or of PEFT.
        out: where to write; new, empty, or an earlier export.
        target: ``"peft"`` for a plain adapter folder; ``"merged"`` for a whole model with its tokenizer, which needs
            neither PEFT nor loratlas.
        base: the base; None for the one that the adapter names.
        dtype: numbers of a merged model. In float32 it equals base + adapter; bfloat16 halves the size and rounds
            what the adapter adds, which ``check`` then shows.
        final: where ``out`` will be moved to, which the recipe names; None where it stays.

    Returns:
        The export. An adapter is compared in the numbers that it was trained in; a merged model, and an adapter that
        had taken its first factors out of the base, in float32, in which they are equal.

    Raises:
        ModelError: adapter or base are not there, the adapter is of another kind, or a module that it needs is held
            by neither of them; nothing is written. OutputError, StorageError: see :func:`save_adapter`.
    """
    written, request = write_export(adapter_dir, out, target=target, base=base, dtype=dtype, final=final)
    return replace(written, check=in_fresh_process([request])[0])


def write_export(
    adapter_dir: str | Path,
    out: str | Path,
    *,
    target: str = "peft",
    base: str | Path | None = None,
    dtype: str = "float32",
    final: Path | None = None,
) -> tuple[Export, Request]:
    """Write an adapter for other tools, without the comparison.

    Args:
        adapter_dir, out, target, base, dtype, final: as for :func:`export`.

    Returns:
        The export, its ``check`` NaN, and what `loratlas.adapters.export.check_export.in_fresh_process` has to compare.
    """
    if target not in FORMATS:
        raise OutputError(
            given=f"--for {target}", found="a format that is not written", instead=" or ".join(FORMATS)
        )
    out = Path(out)
    final = out if final is None else final
    contents = read_adapter(adapter_dir)
    source = str(base or contents.base or "")
    if not source:
        raise ModelError(given=str(adapter_dir), found="it does not name its base", instead="--base MODEL")
    adapter_task, config = open_base_config(contents, source)
    model = adapted_base(contents, source, config)
    own = own_labels(load_config(source))
    options = base_options(
        adapter_task.task,
        getattr(config, "pad_token_id", None),
        new_head=bool(own) and len(own) != len(adapter_task.task.labels),
    )
    trained = contents.dtype or "float32"
    remarks = [adapter_task.remark] if adapter_task.remark else []
    if target == "peft":
        compared = "float32" if contents.changed_base else trained
        save_adapter(model, out, plan_json=contents.notes.get("plan"), extra=_extra(contents, adapter_task))
        recipe = adapter_recipe(source, str(final), task=adapter_task.task, dtype=trained, options=options)
        if contents.changed_base:
            remarks.append(
                f"It was started by {contents.changed_base}, which takes a part out of the base: written as the "
                "ordinary adapter of twice the rank, for the base as it is published."
            )
    else:
        compared = "float32"
        save_merged(model, out, source, dtype)
        recipe = model_recipe(str(final), task=adapter_task.task, dtype=dtype)
        if trained != dtype:
            remarks.append(
                f"Written in {dtype}; it was trained in {trained}, in which losses differ by rounding."
            )
    del model
    request = Request(
        base=str(readable(source, weights=True)),
        kind=class_name(adapter_task.task).removeprefix("AutoModelFor"),
        options=options,
        dtype=compared,
        adapter=str(contents.folder),
        exported=str(out),
        merged=target == "merged",
        tokens=_special_tokens(contents),
    )
    return Export(
        path=str(final), check=math.nan, dtype=compared, recipe=recipe, remarks=tuple(remarks)
    ), request


def _extra(contents: AdapterFolder, adapter_task: Any) -> dict[str, Any]:
    """Notes of the adapter, with the task that was recognised where it had none."""
    extra = dict(contents.notes.get("extra") or {})
    if adapter_task.task.name == CLASSIFICATION:
        extra.setdefault("task", adapter_task.task.to_json())
    return extra


def _special_tokens(contents: AdapterFolder) -> tuple[int, ...]:
    """Tokens that the adapter trained by themselves."""
    indices = contents.config.get("trainable_token_indices") or []
    lists = indices.values() if isinstance(indices, dict) else [indices]
    return tuple(sorted({index for each in lists for index in each}))[:8]
