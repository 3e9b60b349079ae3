"""Watches what code does with tensors that have no numbers: every operation, every byte, in the order of a real run.

Torch's fake tensors have shapes, types and a device, and go through dispatcher, autograd and every kernel's Python
like real ones. What is recorded is therefore what a real run does, whatever the architecture: nothing is modelled.
Memory counts storages, each once however many tensors view it, from the operation that made it until the last
reference is gone.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from loratlas.cost.operations import OperationCall, is_free

_ASK_DEVICE = torch.ops.prim.device.default
_READ_NUMBER = torch.ops.aten._local_scalar_dense.default


class Recorder(TorchDispatchMode):
    """Records while it is entered; `recording` enters it together with fake tensors.

    Code that asks for a number gets one, for it can only be a check: that all of something holds is answered with
    yes, every other question with no or 0. So the path is recorded on which nothing goes wrong.

    Attributes:
        live: bytes of the storages that exist now.
        peak: most of them at any time since `mark`.
        calls: how often each operation ran since `mark` that touches numbers.
        free: how many ran besides that touch none (views).
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.free = 0
        self.calls: Counter[OperationCall] = Counter()
        self._storages: dict[int, Any] = {}  # address → weak reference that takes the bytes off again

    def mark(self) -> None:
        """Begin anew: the peak is what lives now, and no operation has run."""
        self.peak, self.free = self.live, 0
        self.calls.clear()

    def hold(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors that were there before."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            address = storage._cdata
            if address not in self._storages:
                size = storage.nbytes()
                self._storages[address] = weakref.ref(storage, self._gone(address, size))
                self.live += size
        self.peak = max(self.peak, self.live)

    def _gone(self, address: int, size: int) -> Any:
        def forget(_reference: Any) -> None:
            del self._storages[address]
            self.live -= size

        return forget

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _ASK_DEVICE:  # no operation, and by far the commonest question
            return args[0].fake_device
        if func is _READ_NUMBER:
            return _answer(args[0])
        kwargs = kwargs or {}
        call = OperationCall.of(func, args, kwargs)  # before it runs, for it may resize what it is given
        out = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.hold(tensors)
        if func.overloadpacket is torch.ops.aten.all:
            for tensor in tensors:
                tensor.loratlas_holds = True  # type: ignore[attr-defined]
        if is_free(func):
            self.free += 1
        else:
            self.calls[call] += 1
        return out


def _answer(asked: torch.Tensor) -> Any:
    if asked.dtype == torch.bool:
        return bool(getattr(asked, "loratlas_holds", False))
    return 0.0 if asked.is_floating_point() else 0


@contextmanager
def recording() -> Iterator[Recorder]:
    """Within this context tensors are made without numbers, and all that happens to them is recorded.

    Real tensors that come along (indices of a batch, tables of positions) are replaced as they are met.
    """
    recorder = Recorder()
    with FakeTensorMode(allow_non_fake_inputs=True), recorder:
        yield recorder


@contextmanager
def saved(lasting: Iterable[torch.Tensor]) -> Iterator[dict[int, int]]:
    """Collects what the forward pass within keeps for backward: address of a storage → its bytes.

    Works on real tensors as on recorded ones: it is autograd's own list. What is kept by recomputed layers between
    their ends is not on it, for it is not kept.

    Args:
        lasting: tensors that exist anyway (weights); what shares their memory does not count.
    """
    own = {tensor.untyped_storage()._cdata for tensor in lasting}
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield storages
