"""A model and a batch become the losses of its counted tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from loratlas.data.batches.packing import forward, states
from loratlas.evaluation.cross_entropy import Shape, nll, nll_of_states, rows_at_a_time
from loratlas.modeling import unwrap

if TYPE_CHECKING:
    from loratlas.data.batches.batching import Batch

AGREEMENT = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Largest difference of two logits, relative to the largest logit, that rounding explains; else `COARSE`."""

COARSE = 0.02

_SHAPES: WeakKeyDictionary[Any, Shape | None] = WeakKeyDictionary()


def token_losses(model: Any, batch: Batch) -> torch.Tensor:
    """−log p(target_t | tokens before it, in its own example), in nats, of every counted token of a batch.

    Where the output embedding is a frozen linear layer and what the model does to its logits is known, the logits
    are never formed as a whole (`loratlas.evaluation.cross_entropy.nll_of_states`). Which it is, the model proves:
    the logits it gives for three rows must be those that the formula gives.

    Args:
        model: bare or as a `PeftModel`; of a class that does the batch's task.
        batch: packed or padded, on the model's device.

    Returns:
        Float32 [labelled] in the order of ``batch.answers``, with its graph where gradients are recorded.
    """
    read = _read(model, batch)
    if read.states is None or read.shape is None:
        return nll(read.logits, batch.answers)
    return nll_of_states(read.states, read.head.weight, read.head.bias, batch.answers, read.shape)


@torch.no_grad()
def logit_rows(model: Any, batch: Batch) -> Iterator[tuple[slice, torch.Tensor, int]]:
    """Logits at the counted places, some rows at a time, in the order of ``batch.answers``.

    Yields:
        Which rows; their logits [rows, V], in the model's numbers; how often each of them has been rounded.
    """
    read = _read(model, batch)
    vocabulary = read.logits.shape[-1] if read.states is None else len(read.head.weight)
    rows = rows_at_a_time(vocabulary, batch.input_ids.device)
    for start in range(0, batch.labelled, rows):
        here = slice(start, start + rows)
        if read.states is None or read.shape is None:
            yield here, read.logits[here], 1
        else:
            linear = torch.nn.functional.linear(read.states[here], read.head.weight, read.head.bias)
            yield here, read.shape(linear), read.shape.roundings


@dataclass(frozen=True, slots=True, kw_only=True)
class _Readout:
    """What a pass left: logits, or the states that the output embedding turns into them."""

    logits: torch.Tensor
    states: torch.Tensor | None = None
    head: Any = None
    shape: Shape | None = None


def _read(model: Any, batch: Batch) -> _Readout:
    inner = unwrap(model)
    head = inner.get_output_embeddings()
    if _SHAPES.get(inner, True) is None or not batch.labelled or not _plain(head):
        return _Readout(logits=forward(model, batch))
    hidden, probe, logits = states(model, batch)
    if hidden is None:
        return _Readout(logits=logits)
    if hidden.dtype != head.weight.dtype:
        return _Readout(logits=forward(model, batch))
    if inner not in _SHAPES:
        _SHAPES[inner] = _shape(inner, head(probe), logits)
    shape = _SHAPES[inner]
    if shape is None:
        return _Readout(logits=forward(model, batch))
    return _Readout(logits=logits, states=hidden, head=head, shape=shape)


def _plain(head: Any) -> bool:
    """Whether the output embedding is a frozen linear layer that nothing is hooked onto."""
    return (
        type(head) is torch.nn.Linear
        and not any(p.requires_grad for p in head.parameters())
        and not (head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head))
        and not torch.is_autocast_enabled(head.weight.device.type)
    )


@torch.no_grad()
def _shape(inner: Any, before: torch.Tensor, after: torch.Tensor) -> Shape | None:
    """What turns the output embedding's rows ``before`` into the model's logits ``after``; None: nothing known.

    What the config names is tried first: close to 0 a softcap is the identity.
    """
    config = inner.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    factor, divisor = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
    softcaps = [float(softcap), None] if isinstance(softcap, (int, float)) and softcap else [None]
    scales = [
        float(s) for s in (factor, 1 / divisor if divisor else None) if isinstance(s, (int, float)) and s
    ]
    allowed = AGREEMENT.get(before.dtype, COARSE)
    for cap, scale in product(softcaps, [*scales, 1.0]):
        shape = Shape(scale=scale, softcap=cap)
        difference = (shape(before) - after).abs().amax(-1)
        if bool((difference <= allowed * after.abs().amax(-1)).all()):
            return shape
    return None
