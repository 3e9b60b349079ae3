"""What a model for text is called with to be watched or probed: a few tokens, and what else it can attend to."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Set
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn


# What configs call the width of their states, and the number of bands of a spectrogram.
_WIDTHS = ("hidden_size", "d_model", "hidden_dim", "embed_dim")
_BINS = ("num_mel_bins", "input_dim", "feature_projection_input_dim", "input_size", "n_mels")


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
    states_of = ["encoder_hidden_states", "cross_attention_states"]
    if not config.is_encoder_decoder:
        states_of.append("encoder_outputs")  # a decoder on its own
    for name in states_of:
        if name in wanted:
            width = getattr(config, "cross_attention_hidden_size", None) or getattr(config, "hidden_size", 0)
            if width:
                states = _random(model, (1, others, width))
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


def tower_inputs(tower: nn.Module, *, tokens: int, others: int) -> list[dict[str, Any]]:
    """Arguments to try on a part of a model that its text did not reach: an image, a spectrogram, a sound, states, ids.

    Each is tried alone and then with a mask that hides nothing, where the tower takes one. What attends to states
    from elsewhere is given some.

    Args:
        tower: with a config of its own.
        tokens: of states, where it takes those.
        others: of whatever else it attends to.
    """
    config: Any = tower.config
    wanted = inspect.signature(tower.forward).parameters
    name = next(iter(wanted), "")
    if name == "input_ids":
        return [{name: _ids(tower, 1, tokens), **({"use_cache": False} if "use_cache" in wanted else {})}]
    extra: dict[str, Any] = {}
    if "encoder_hidden_states" in wanted:
        width = _size(config, "encoder_hidden_size", "cross_attention_hidden_size", *_WIDTHS)
        extra["encoder_hidden_states"] = _random(tower, (1, others, width))
    masks = [other for other in wanted if other == "mask" or other.endswith("_mask")]
    tries: list[dict[str, Any]] = []
    for shape, frames in _shapes(config, name, tokens):
        given = {name: _random(tower, shape), **extra}
        tries.append(given)
        if frames and masks:
            full = torch.ones(1, frames, dtype=torch.long, device=_device(tower))
            tries += [given | {mask: full} for mask in masks]
    return tries


def _shapes(config: Any, name: str, tokens: int) -> list[tuple[tuple[int, ...], int]]:
    """Shapes to try for an argument of this name, and how many frames of a sound each holds."""
    width = _size(config, *_WIDTHS)
    if "pixel" in name or "image" in name:
        high, wide = _square(getattr(config, "image_size", None) or 32)
        return [((1, _size(config, "num_channels", "in_channels", "in_chans") or 3, high, wide), 0)]
    states = [((1, tokens, width), 0)] if width else []
    longest = 2 * _size(config, "max_source_positions")
    bins = _size(config, *_BINS)
    spectra: list[tuple[tuple[int, ...], int]] = []
    for high in (bins,) if bins else (80, 128):  # the usual ones
        spectra += [((1, high, longest), longest)] if longest else []
        spectra += [((1, 8 * tokens, high), 8 * tokens), ((1, high, 8 * tokens), 8 * tokens)]
    sounds = [((1, 1, 9600), 0), ((1, 9600), 0)]
    if "features" in name:
        return spectra
    if "values" in name or "audio" in name:
        return sounds
    if "hidden" in name or "embeds" in name or "states" in name:
        return states + (spectra if bins else []) + sounds  # some call a sound so
    return []


def _random(tower: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, device=_device(tower), dtype=_dtype(tower))


def silent_towers(model: nn.Module, blocks: Iterable[str], ran: Set[str]) -> list[nn.Module]:
    """The largest models inside a model of which no block ran."""
    from transformers import PreTrainedModel

    towers: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        if not name or not isinstance(module, PreTrainedModel):
            continue
        inside = {block for block in blocks if block.startswith(name + ".")}
        if inside and not inside & ran and not any(name.startswith(outer + ".") for outer, _ in towers):
            towers.append((name, module))
    return [module for _, module in towers]


def _size(config: Any, *names: str) -> int:
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), 0)


def _square(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))
