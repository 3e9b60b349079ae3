"""Run the model on the meta device and follow which matrix each activation came from.

One forward pass of four tokens, without memory or arithmetic. Every new tensor carries the names of the
matrices whose outputs went into it, together with which columns of those outputs, so that one can see

* which matrices read the same tensor,
* which outputs are multiplied with each other and then soft-maxed (queries and keys), what the result is
  multiplied with (values) and which matrix reads that (output),
* which output goes through a nonlinearity and is multiplied with which other one (gate and up), and who reads
  it.

No name of any module is looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from loratlas.anatomy.load import quiet

if TYPE_CHECKING:
    from torch import nn

_ATEN = torch.ops.aten
_PRODUCTS = {_ATEN.bmm, _ATEN.baddbmm, _ATEN.mm, _ATEN.matmul}
_SOFTMAX = {_ATEN._softmax, _ATEN.softmax, _ATEN._safe_softmax}
_NONLINEAR = {
    _ATEN.silu,
    _ATEN.gelu,
    _ATEN.relu,
    _ATEN.sigmoid,
    _ATEN.tanh,
    _ATEN.erf,
    _ATEN.hardtanh,
    _ATEN.hardswish,
    _ATEN.leaky_relu,
    _ATEN.elu,
    _ATEN.mish,
    _ATEN.softplus,
}
_TIMES = {_ATEN.mul}
_CASTS = {_ATEN._to_copy, _ATEN.clone}


# Sizes, strides and offset of a view.
Geometry = tuple[tuple[int, ...], tuple[int, ...], int]


@dataclass(frozen=True, slots=True)
class View:
    """Part of a matrix's output: how the view lies in it, and the width of a whole row."""

    module: str
    geometry: Geometry
    width: int


@lru_cache(maxsize=64)  # the blocks of a model look alike
def columns(geometry: Geometry, width: int) -> frozenset[int]:
    """Which columns of an output of this width a view with this geometry holds.

    >>> sorted(columns(((1, 4, 2, 3), (48, 12, 6, 1), 2), 12))
    [2, 3, 4, 8, 9, 10]
    """
    sizes, strides, offset = geometry
    if 0 in sizes:
        return frozenset()
    found = {offset % width}
    for size, stride in zip(sizes, strides, strict=True):
        if size > 1 and stride % width:
            found = {(column + step * stride) % width for column in found for step in range(size)}
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class Mixed:
    """What left attention number ``event``."""

    event: int


@dataclass(frozen=True, slots=True)
class Label:
    """One origin of an activation, and whether a nonlinearity lay on the way."""

    origin: View | Mixed
    activated: bool


Labels = frozenset[Label]
_NOTHING: Labels = frozenset()


@dataclass(slots=True)
class Attention:
    """One product → softmax → product, and what went in."""

    q: Labels
    k: Labels
    v: Labels


@dataclass(slots=True)
class Gate:
    """One product of an activated output with another one."""

    gate: Labels
    up: Labels


@dataclass(slots=True)
class Flow:
    """What one forward pass showed.

    Args:
        reads: module → key of the tensor it reads; equal keys are the same tensor.
        order: module → position in the order of calls.
        inputs: module → labels of what it reads.
        attentions: all attention operations.
        gates: all gating products.
        uses: raw parameter → names of the operations that read it; views and casts are seen through.
        complete: whether the pass came to its end.
        reason: why it did not.
    """

    reads: dict[str, tuple[int, ...]] = field(default_factory=dict)
    order: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, Labels] = field(default_factory=dict)
    attentions: list[Attention] = field(default_factory=list)
    gates: list[Gate] = field(default_factory=list)
    uses: dict[str, set[str]] = field(default_factory=dict)
    complete: bool = False
    reason: str = ""


class Watch(TorchDispatchMode):
    """Carry labels from tensor to tensor, by storage."""

    def __init__(self, flow: Flow, raw: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.flow = flow
        self.raw = raw
        self.stage = 0
        self.forget()

    def forget(self) -> None:
        """Drop all labels: what comes next is told apart by itself (called at the entry of every block)."""
        self.stage += 1
        self.kept: list[Any] = []  # storages stay alive, so that their addresses stay distinct
        self.roots: dict[int, tuple[str, int]] = {}
        self.labels: dict[int, Labels] = {}
        self.products: dict[int, tuple[Labels, Labels]] = {}
        self.weights: dict[int, tuple[Labels, Labels]] = {}
        self.parameters = {self._key(tensor): path for path, tensor in self.raw.items()}

    def root(self, module: str, output: torch.Tensor) -> None:
        """The output of a matrix: from here on its own columns are the origin."""
        key = self._key(output)
        self.roots[key] = (module, output.shape[-1])
        self.labels.pop(key, None)

    def of(self, tensor: torch.Tensor) -> Labels:
        """Where a tensor comes from."""
        key = self._key(tensor)
        if key in self.roots:
            module, width = self.roots[key]
            geometry = (tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))
            return frozenset({Label(View(module, geometry, width), False)})
        return self.labels.get(key, _NOTHING)

    def _key(self, tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        self.kept.append(storage)
        return storage._cdata

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet = func.overloadpacket
        if packet is _ATEN._local_scalar_dense and args[0].device.type == "meta":
            # Code that asks a mask or a count for its value: every mask is all true, every count 1.
            return True if args[0].dtype == torch.bool else 1
        result = func(*args, **(kwargs or {}))
        inputs = list(_tensors((*args, *(kwargs or {}).values())))
        outputs = list(_tensors((result,)))
        if inputs and outputs:
            self._carry(packet, inputs, outputs)
        return result

    def _carry(self, packet: Any, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        keys = [self._key(value) for value in inputs]
        labels = [self.of(value) for value in inputs]
        out = self._key(outputs[0])
        self._use(packet, keys, out)
        if packet in _PRODUCTS and len(inputs) >= 2:
            weights = self.weights.get(keys[-2]) or self.weights.get(keys[-1])
            if weights is not None:
                self.attend(out, *weights, labels[-1] if keys[-2] in self.weights else labels[-2])
                return
            if labels[-2] and labels[-1]:
                self.products[out] = (labels[-2], labels[-1])
        elif packet in _SOFTMAX:
            if keys[0] in self.products:
                self.weights[out] = self.products[keys[0]]
        else:
            self._inherit(keys, outputs)
            if packet in _TIMES and len(labels) == 2:
                self._gate(*labels)
        union = _NOTHING.union(*labels)
        if packet in _NONLINEAR:
            union = frozenset(Label(label.origin, True) for label in union)
        for value in outputs:
            key = self._key(value)
            if key in self.roots and key in keys and packet not in _NONLINEAR:
                continue  # a view of a matrix's output, or a change of it in place
            if key not in keys:
                self.labels[key] = union
            elif union:
                self.roots.pop(key, None)
                self.labels[key] = union

    def _use(self, packet: Any, keys: list[int], out: int) -> None:
        for key in keys:
            path = self.parameters.get(key)
            if path is None or out == key:
                continue
            if packet in _CASTS:
                self.parameters[out] = path
            else:
                self.flow.uses.setdefault(path, set()).add(str(packet))

    def _inherit(self, keys: list[int], outputs: list[torch.Tensor]) -> None:
        # Scaling, masking, biasing, casting and dropout lie between a product and its softmax, and after it.
        for marks in (self.products, self.weights):
            for key in keys:
                if key in marks:
                    for value in outputs:
                        marks[self._key(value)] = marks[key]

    def attend(self, output: torch.Tensor | int, q: Labels, k: Labels, v: Labels) -> None:
        """Note one attention operation; ``output`` (or its key) is what came out."""
        out = output if isinstance(output, int) else self._key(output)
        self.labels[out] = frozenset({Label(Mixed(len(self.flow.attentions)), False)})
        self.flow.attentions.append(Attention(q, k, v))

    def _gate(self, left: Labels, right: Labels) -> None:
        if not left or not right or {item.origin for item in left} & {item.origin for item in right}:
            return
        first, second = (any(item.activated for item in side) for side in (left, right))
        if first != second:
            self.flow.gates.append(Gate(left, right) if first else Gate(right, left))


class Shortcuts(TorchFunctionMode):
    """Two calls that are seen better from Python than from the dispatcher.

    ``scaled_dot_product_attention`` is noted as a whole: on the meta device it would fall apart into a
    dozen operations. ``x[..., [-1], :]`` is read as ``x[..., -1:, :]``: the two are equal, but the first reaches the
    dispatcher as an index tensor whose value the meta device has lost.
    """

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.scaled_dot_product_attention:
            q, k, v = (_argument(args, kwargs, i, name) for i, name in enumerate(("query", "key", "value")))
            output = q.new_empty((*q.shape[:-1], v.shape[-1]))
            self.watch.attend(output, *(self.watch.of(tensor) for tensor in (q, k, v)))
            return output
        if func is torch.Tensor.__getitem__ and isinstance(args[1], tuple):
            args = (args[0], tuple(_slice(item) for item in args[1]))
        return func(*args, **(kwargs or {}))


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any] | None, position: int, name: str) -> torch.Tensor:
    return args[position] if position < len(args) else (kwargs or {})[name]


def _slice(item: Any) -> Any:
    if isinstance(item, list) and len(item) == 1 and type(item[0]) is int:
        return slice(item[0], item[0] + 1 or None)
    return item


def observe(
    model: nn.Module, matrices: set[str], blocks: set[str], raw: dict[str, torch.Tensor] | None = None
) -> Flow:
    """Watch one forward pass of four tokens.

    Args:
        model: on the meta device, in eval mode.
        matrices: names of the modules that hold matrices.
        blocks: names of the repeated blocks.
        raw: parameters that no linear map or embedding holds, by name.

    Returns:
        What was seen; ``complete`` is false where the model does not run on token ids alone.
    """
    flow = Flow()
    watch = Watch(flow, raw or {})

    def before(name: str):
        def note(_module, args, kwargs) -> None:
            tensor = next((v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)), None)
            if tensor is None or name in flow.order:
                return
            key = watch._key(tensor)
            flow.reads[name] = (
                watch.stage,
                key,
                int(tensor.storage_offset()),
                tensor.numel(),
                tensor.shape[-1],
            )
            flow.inputs[name] = watch.of(tensor)
            flow.order[name] = len(flow.order)

        return note

    def after(name: str):
        def note(_module, _args, output) -> None:
            if isinstance(output, torch.Tensor):
                watch.root(name, output)

        return note

    handles = []
    for name, module in model.named_modules():
        if name in blocks:
            handles.append(module.register_forward_pre_hook(lambda *_: watch.forget()))
        if name in matrices:
            handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
            handles.append(module.register_forward_hook(after(name)))
    try:
        with quiet(), torch.no_grad(), watch, Shortcuts(watch):
            model(input_ids=torch.zeros(1, 4, dtype=torch.long, device="meta"), use_cache=False)
        flow.complete = True
    except Exception as error:
        # A model that does not run on token ids alone is still read, by its names and shapes.
        flow.reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
    finally:
        for handle in handles:
            handle.remove()
    return flow


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _tensors(value)
        elif isinstance(value, torch.Tensor):
            yield value
