"""Calls that are seen better from Python than from the dispatcher."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from loratlas.anatomy.trace.flow_records import Labels, View
from loratlas.anatomy.trace.meta_values import listed
from loratlas.anatomy.trace.provenance import Labelled, Pairs


class Shortcuts(TorchFunctionMode):
    """See the module's docstring.

    ``scaled_dot_product_attention`` is noted as a whole: on the meta device it would be split into a
    dozen operations. ``x[..., [-1], :]`` is read as ``x[..., -1:, :]``: the two are equal, but the first reaches
    the dispatcher as an index tensor whose value the meta device has lost.
    """

    def __init__(self, known: Labelled) -> None:
        super().__init__()
        self.known = known

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            return self._attention(args, kwargs)
        if func is torch.Tensor.__format__ and args[0].device.type == "meta" and args[0].ndim == 0:
            return "1"
        if func is torch.Tensor.tolist and args[0].device.type == "meta":
            return listed(args[0])
        if func is torch.Tensor.__getitem__ and isinstance(args[1], tuple):
            args = (args[0], tuple(_slice(item) for item in args[1]))
        return func(*args, **kwargs)

    def _attention(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        names = ("query", "key", "value", "attn_mask")
        given: dict[str, Any] = {
            name: args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(names)
        }
        q, k, v = (given[name] for name in names[:3])
        known = self.known
        mask = given["attn_mask"]
        # A mask that is a product with the same queries or keys is a part of the scores; one of others chooses tokens.
        mine = _matrices(known.of(q) | known.of(k))
        added = Pairs(
            pair
            for pair in (Pairs() if mask is None else known.products.get(known.key(mask), Pairs()))
            if mine & _matrices(pair[0] | pair[1])
        )
        met = added | {(known.of(q), known.of(k))}, known.of(v), (q.shape[-2], k.shape[-2])
        if q.device.type == "meta":
            output = q.new_empty((*q.shape[:-1], v.shape[-1]))
        else:
            with (
                torch._C.DisableTorchFunctionSubclass(),
                _disable_current_modes(),
            ):
                output = torch.nn.functional.scaled_dot_product_attention(*args, **kwargs)
        known.attend(output, *met)
        if mask is not None and not added and known.of(mask):
            known.flow.biases |= {i.origin.path for i in known.of(mask) if isinstance(i.origin, View)}
        return output


def _matrices(labels: Labels) -> set[str]:
    """The matrices that something came from last."""
    return {label.origin.path for label in labels if isinstance(label.origin, View)}


def _slice(item: Any) -> Any:
    if isinstance(item, list) and len(item) == 1 and type(item[0]) is int:
        return slice(item[0], item[0] + 1 or None)
    return item
