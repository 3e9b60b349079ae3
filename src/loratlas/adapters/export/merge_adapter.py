"""An adapter added into its base: one model of the base's own kind, which needs neither PEFT nor loratlas."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.adapters.stored.load_adapter import load_adapter
from loratlas.adapters.stored.read_adapter import AdapterFolder
from loratlas.adapters.trained_heads import refuse_untrained
from loratlas.errors import ModelError
from loratlas.files import whole_folder
from loratlas.models.base_tokenizer import base_tokenizer
from loratlas.models.config import load_config
from loratlas.models.quiet import quiet

if TYPE_CHECKING:
    from peft import PeftModel


def adapted_base(contents: AdapterFolder, source: str, config: Any) -> PeftModel:
    """An adapter on its base, in float32.

    Args:
        contents: of its folder. source: the base. config: as `open_base_config` returned it.

    Raises:
        ModelError: they do not fit, or a module that the adapter needs is held by neither.
    """
    from loratlas.models.load import load_model

    model = load_adapter(
        load_model(source, config=config, dtype="float32", base_dropout=True), contents.folder
    )
    return refuse_untrained(model, contents.folder)


def merged_base(model: PeftModel, source: str, *, given: str) -> Any:
    """Add an adapter into its base, in place.

    Args:
        model: of :func:`adapted_base`; not to be used afterwards.
        source: the base, whose config says whether it keeps a cache.
        given: what was asked for, for the message.

    Returns:
        The base's own class of model.

    Raises:
        ModelError: PEFT cannot add it.
    """
    _untie(model)
    try:
        with quiet():
            merged: Any = model.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            given=given,
            found=f"an adapter that cannot be added into its base: {str(error).splitlines()[0][:200]}",
            instead="--for peft",
        ) from error
    # What loading for training switched off is not the base's own setting.
    merged.config.use_cache = getattr(load_config(source), "use_cache", True)
    return merged


def save_merged(model: PeftModel, out: Path, source: str, dtype: str) -> None:
    """Write a merged model with its tokenizer as a folder.

    Args:
        model: of :func:`adapted_base`; not to be used afterwards.
        out: the folder. source: the base. dtype: of its numbers.
    """
    import torch

    merged = merged_base(model, source, given=str(out)).to(getattr(torch, dtype))
    with whole_folder(out, marker="config.json") as new, quiet():
        merged.save_pretrained(new)
        tokenizer = base_tokenizer(source)
        if tokenizer is not None:  # a base without one is merged without one
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
