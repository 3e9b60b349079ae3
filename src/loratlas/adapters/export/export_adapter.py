"""Handing adapters over: plain PEFT folders and merged models, each checked on a base that a fresh process loads."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.adapters.export.check_export import Request, in_fresh_process
from loratlas.adapters.export.loading_recipe import adapter_recipe, base_options, class_name, model_recipe
from loratlas.adapters.stored.adapter_files import save_adapter
from loratlas.adapters.stored.adapter_task import open_base_config
from loratlas.adapters.stored.load_adapter import load_adapter
from loratlas.adapters.stored.read_adapter import AdapterFolder, read_adapter
from loratlas.adapters.trained_heads import refuse_untrained
from loratlas.errors import ModelError, OutputError
from loratlas.files import whole_folder
from loratlas.models.config import load_config, quiet
from loratlas.models.labels import own_labels
from loratlas.models.task import CLASSIFICATION

if TYPE_CHECKING:
    from peft import PeftModel

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
    """

    path: str
    check: float
    dtype: str
    recipe: str
    remarks: tuple[str, ...] = ()


def export(
    adapter_dir: str | Path,
    out: str | Path,
    *,
    target: str = "peft",
    base: str | Path | None = None,
    dtype: str = "float32",
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

    Returns:
        The export. An adapter is compared in the numbers that it was trained in; a merged model, and an adapter that
        had taken its first factors out of the base, in float32, in which they are equal.

    Raises:
        ModelError: adapter or base are not there, the adapter is of another kind, or a module that it needs is held
            by neither of them; nothing is written. OutputError, StorageError: see :func:`save_adapter`.
    """
    written, request = write_export(adapter_dir, out, target=target, base=base, dtype=dtype)
    return replace(written, check=in_fresh_process([request])[0])


def write_export(
    adapter_dir: str | Path,
    out: str | Path,
    *,
    target: str = "peft",
    base: str | Path | None = None,
    dtype: str = "float32",
) -> tuple[Export, Request]:
    """Write an adapter for other tools, without the comparison.

    Args:
        adapter_dir, out, target, base, dtype: as for :func:`export`.

    Returns:
        The export, its ``check`` NaN, and what `loratlas.adapters.export.check_export.in_fresh_process` has to compare.
    """
    if target not in FORMATS:
        raise OutputError(
            given=f"--for {target}", found="a format that is not written", instead=" or ".join(FORMATS)
        )
    out = Path(out)
    contents = read_adapter(adapter_dir)
    source = str(base or contents.base or "")
    if not source:
        raise ModelError(given=str(adapter_dir), found="it does not name its base", instead="--base MODEL")
    adapter_task, config = open_base_config(contents, source)
    model = _adapted(contents, source, config)
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
        recipe = adapter_recipe(source, str(out), task=adapter_task.task, dtype=trained, options=options)
        if contents.changed_base:
            remarks.append(
                f"It was started by {contents.changed_base}, which takes a part out of the base: written as the "
                "ordinary adapter of twice the rank, for the base as it is published."
            )
    else:
        compared = "float32"
        _save_merged(model, out, source, dtype)
        recipe = model_recipe(str(out), task=adapter_task.task, dtype=dtype)
        if trained != dtype:
            remarks.append(
                f"Written in {dtype}; it was trained in {trained}, in which losses differ by rounding."
            )
    del model
    request = Request(
        base=source,
        kind=class_name(adapter_task.task).removeprefix("AutoModelFor"),
        options=options,
        dtype=compared,
        adapter=str(contents.folder),
        exported=str(out),
        merged=target == "merged",
        tokens=_special_tokens(contents),
    )
    return Export(
        path=str(out), check=math.nan, dtype=compared, recipe=recipe, remarks=tuple(remarks)
    ), request


def _adapted(contents: AdapterFolder, source: str, config: Any) -> PeftModel:
    from loratlas.models.load import load_model

    model = load_adapter(
        load_model(source, config=config, dtype="float32", base_dropout=True), contents.folder
    )
    return refuse_untrained(model, contents.folder)


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


def _save_merged(model: PeftModel, out: Path, source: str, dtype: str) -> None:
    import torch
    from transformers import AutoTokenizer

    _untie(model)
    try:
        with quiet():
            merged: Any = model.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise ModelError(
            given=str(out),
            found=f"an adapter that cannot be added into its base: {str(error).splitlines()[0][:200]}",
            instead="--for peft",
        ) from error
    merged = merged.to(getattr(torch, dtype))
    # What loading for training switched off is not the base's own setting.
    merged.config.use_cache = getattr(load_config(source), "use_cache", True)
    with whole_folder(out, marker="config.json") as new, quiet():
        merged.save_pretrained(new)
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return  # a base without a tokenizer is merged without one
        tokenizer.save_pretrained(new)


def _untie(model: PeftModel) -> None:
    """Give a head that shares its matrix with the embedding one of its own, where only one of the two is adapted.

    Merging would change both.
    """
    import torch

    inner: Any = model.get_base_model()
    ends = [inner.get_input_embeddings(), inner.get_output_embeddings()]
    if any(end is None for end in ends):
        return
    layers = [end.get_base_layer() if hasattr(end, "get_base_layer") else end for end in ends]
    adapted = [end is not layer for end, layer in zip(ends, layers, strict=True)]
    if not any(adapted) or layers[0].weight is not layers[1].weight:
        return
    layers[1].weight = torch.nn.Parameter(layers[1].weight.detach().clone(), requires_grad=False)
    inner.config.tie_word_embeddings = False
    inner.config.get_text_config().tie_word_embeddings = False
