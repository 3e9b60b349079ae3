"""What a model for text is called with to be watched or probed: a few tokens, and what else it can attend to."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn


def inputs(model: nn.Module, *, tokens: int, others: int) -> list[dict[str, Any]]:
    """Arguments to try, best first: token ids, and an encoder's states where the model can attend to some.

    On the meta device they have no values; elsewhere they are drawn at random, from the generator of torch.

    Args:
        model: with a config.
        tokens: of the text.
        others: of whatever else it attends to; another number, so that cross-attention shows.
    """
    config: Any = model.config
    wanted = inspect.signature(model.forward).parameters
    given: dict[str, Any] = {"input_ids": _ids(model, 1, tokens)}
    if "use_cache" in wanted:
        given["use_cache"] = False
    if "lang_ids" in wanted:
        given["lang_ids"] = torch.zeros(1, dtype=torch.long, device=_device(model))
    if "decoder_input_ids" in wanted and config.is_encoder_decoder:
        given |= {"input_ids": _ids(model, 1, others), "decoder_input_ids": _ids(model, 1, tokens)}
    tries = [given]
    books = getattr(config, "num_codebooks", None)
    if isinstance(books, int):
        tries.append(given | {"input_ids": _ids(model, books, tokens)})
    for name in ("encoder_hidden_states", "cross_attention_states"):
        if name in wanted:
            width = getattr(config, "cross_attention_hidden_size", None) or getattr(config, "hidden_size", 0)
            if width:
                states = torch.randn(1, others, width, device=_device(model), dtype=_dtype(model))
                tries = [one | {name: states} for one in tries] + tries
    return tries


def _ids(model: nn.Module, rows: int, length: int) -> torch.Tensor:
    """Unlike ids of which none is special: padding, the first and the last ones of a vocabulary often are."""
    config: Any = model.config
    config = config.get_text_config()
    size = getattr(config, "vocab_size", None) or 64
    first = min(5, size - 1)
    return torch.randint(first, max(size - 20, first + 1), (rows, length), device=_device(model))


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _dtype(model: nn.Module) -> torch.dtype:
    return next(value.dtype for value in model.parameters() if value.dtype.is_floating_point)
