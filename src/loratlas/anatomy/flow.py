"""Run the model on the meta device and note which tensor each module reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from torch import nn


@dataclass(slots=True)
class Flow:
    """What one forward pass showed.

    Args:
        reads: module → number of the tensor storage it reads; equal numbers are the same tensor.
        order: module → position in the order of calls.
        complete: whether the pass came to its end.
        reason: why it did not.
    """

    reads: dict[str, int] = field(default_factory=dict)
    order: dict[str, int] = field(default_factory=dict)
    complete: bool = False
    reason: str = ""


class MetaScalars(TorchDispatchMode):
    """Let code on the meta device ask tensors for numbers: every mask is all true, every count is 1."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default and args[0].device.type == "meta":
            return True if args[0].dtype == torch.bool else 1
        return func(*args, **(kwargs or {}))


def observe(model: nn.Module, names: set[str]) -> Flow:
    """Watch one forward pass of four tokens.

    Args:
        model: on the meta device.
        names: modules to watch.
    """
    flow = Flow()
    kept: list[torch.Tensor] = []  # keeps storages alive, so that their addresses stay distinct

    def hook(name: str):
        def note(_module, args, kwargs) -> None:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
            if tensors:
                kept.append(tensors[0])
                flow.reads.setdefault(name, tensors[0].untyped_storage()._cdata)
                flow.order.setdefault(name, len(flow.order))

        return note

    handles = [
        module.register_forward_pre_hook(hook(name), with_kwargs=True)
        for name, module in model.named_modules()
        if name in names
    ]
    try:
        with torch.no_grad(), MetaScalars():
            model(input_ids=torch.zeros(1, 4, dtype=torch.long, device="meta"), use_cache=False)
        flow.complete = True
    except Exception as error:
        # A model that cannot run without data is still read; what needs the observation stays unresolved.
        flow.reason = f"{type(error).__name__}: {error}"[:200]
    finally:
        for handle in handles:
            handle.remove()
    return flow
