"""Answers for code that asks a tensor without memory for its values.

Every mask is all true, every count is one and every index zero: enough for a pass that is watched and not
computed. A choice of tokens or experts then takes all of them.
"""

from __future__ import annotations

from typing import Any

import torch

_ATEN = torch.ops.aten


def answer(packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, Any]:
    """Whether this operation asks for values, and the answer."""
    if packet is _ATEN._local_scalar_dense and args[0].device.type == "meta":
        return True, True if args[0].dtype == torch.bool else 1
    if packet is _ATEN.nonzero and args[0].device.type == "meta":
        size, count = args[0].shape, args[0].numel()
        return True, torch.empty((count, len(size)), dtype=torch.long, device="meta")
    if packet is _ATEN.masked_select:
        return True, args[0].new_empty((torch.broadcast_shapes(args[0].shape, args[1].shape).numel(),))
    if packet is _ATEN.index and _masks(args[1]):
        return True, _ATEN.index(args[0], _as_numbers(args[1]))
    if packet in (_ATEN.index_put, _ATEN.index_put_, _ATEN._index_put_impl_) and _masks(args[1]):
        return True, args[0] if packet is not _ATEN.index_put else args[0].clone()
    if packet is _ATEN.equal:
        return True, True
    if packet in (_ATEN._unique2, _ATEN.unique_consecutive, _ATEN.unique_dim):
        empty = args[0].new_empty(args[0].shape, dtype=torch.long)
        return True, (args[0].clone(), empty, empty.flatten())
    if packet is _ATEN.bincount:
        least = kwargs.get("minlength", args[2] if len(args) > 2 else 0)
        return True, torch.empty((max(int(least), 1),), dtype=torch.long, device="meta")
    if packet is _ATEN.repeat_interleave and args and args[0].device.type == "meta":
        return True, torch.empty(args[0].shape, dtype=torch.long, device="meta")
    return False, None


def _masks(indices: Any) -> bool:
    return any(
        isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) and i.device.type == "meta"
        for i in indices
    )


def _as_numbers(indices: Any) -> list[torch.Tensor | None]:
    numbers: list[torch.Tensor | None] = []
    for index in indices:
        if isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8):
            numbers += [torch.empty((index.numel(),), dtype=torch.long, device="meta")] * index.ndim
        else:
            numbers.append(index)
    return numbers


def listed(tensor: torch.Tensor) -> Any:
    """``tensor.tolist()`` of a tensor without memory: ones in its shape."""
    if tensor.ndim == 0:
        return tensor.item()
    return [listed(row) for row in tensor.unbind()] if tensor.ndim > 1 else [1] * tensor.shape[0]
