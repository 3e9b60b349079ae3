"""Carry labels from tensor to tensor while a model runs on the meta device.

Every operation is seen below the modules, so that it makes no difference whether a matrix is applied by its own
module, by another one, as a raw parameter in an einsum, or as a slice of a stack: where one factor of a product
is made of a parameter alone and the other is an activation, that parameter is a map. Labels are kept by storage:
a view carries what its base carries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from loratlas.anatomy.records import (
    ACTIVATED,
    MIXED,
    NOTHING,
    POSITIVE,
    ROUTED,
    Attended,
    Attention,
    Call,
    Choice,
    Flow,
    Gate,
    Label,
    Labels,
    Stream,
    View,
)
from loratlas.anatomy.unknown import answer, listed

# Product → positions of its factors among the tensors it is given. Names are without the underscore of in-place.
_PRODUCTS: dict[str, tuple[int, int]] = {
    "mm": (0, 1),
    "bmm": (0, 1),
    "addmm": (1, 2),
    "baddbmm": (1, 2),
    "mv": (0, 1),
    "dot": (0, 1),
    "convolution": (0, 1),
    "_grouped_mm": (0, 1),
}
_SOFTMAX = frozenset({"_softmax", "_safe_softmax"})
_POSITIVE = frozenset({"exp", "exp2", "softplus"})
_NONLINEAR = _POSITIVE | {
    "silu", "gelu", "relu", "sigmoid", "log_sigmoid_forward", "tanh", "erf", "hardtanh", "hardswish",
    "leaky_relu", "elu", "mish", "expm1",
}  # fmt: skip
_PICKS = frozenset({"index", "index_select", "gather", "embedding"})
_CHOICES = frozenset({"topk", "argmax", "sort", "max"})
_SCANS = frozenset({"cumsum", "logcumsumexp"})
_ELEMENTWISE = frozenset({"mul", "add", "sub", "div", "addcmul", "lerp", "where"})


class Watch(TorchDispatchMode):
    """See the module's docstring.

    Args:
        flow: what is filled.
        parameters: parameter → its names, in the model's order; all of two or more dimensions.
    """

    def __init__(self, flow: Flow, parameters: list[tuple[torch.Tensor, list[str]]]) -> None:
        super().__init__()
        self.flow = flow
        self.parameters = parameters
        self.running: list[str] = []
        self.stage = 0
        self.forget()

    def forget(self) -> None:
        """Drop all labels: what comes next is told apart by itself (called at the entry of every block)."""
        self.stage += 1
        self.kept: list[Any] = []  # storages stay alive, so that their addresses stay distinct
        self.roots: dict[int, tuple[str, int]] = {}
        self.labels: dict[int, Labels] = {}
        # Scores that products of activations made, before and after their softmax.
        self.products: dict[int, frozenset[tuple[Labels, Labels]]] = {}
        self.weights: dict[int, frozenset[tuple[Labels, Labels]]] = {}
        self.lengths: dict[int, tuple[int, int]] = {}
        self.chosen: dict[int, Choice] = {}
        self.made_of: dict[int, frozenset[str]] = {}
        self.names: dict[str, list[str]] = {}
        for parameter, names in self.parameters:
            self.names[names[0]] = names
            self.made_of[self.key(parameter)] = frozenset({names[0]})

    def stream(self, tensor: torch.Tensor, number: int) -> None:
        """What enters a block."""
        self.labels[self.key(tensor)] = frozenset({Label(Stream(number))})
        self.roots.pop(self.key(tensor), None)

    def of(self, tensor: torch.Tensor) -> Labels:
        """Where a tensor comes from; numbers and masks come from nowhere."""
        if not (tensor.dtype.is_floating_point or tensor.dtype.is_complex):
            return NOTHING
        key = self.key(tensor)
        if key in self.roots:
            path, width = self.roots[key]
            geometry = (tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))
            return frozenset({Label(View(path, geometry, width))})
        return self.labels.get(key, NOTHING)

    def key(self, tensor: torch.Tensor) -> int:
        """One number per storage."""
        storage = tensor.untyped_storage()
        self.kept.append(storage)
        return storage._cdata

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func.overloadpacket.__name__.removesuffix("_")
        known, result = answer(func.overloadpacket, args, kwargs)
        if not known:
            result = _called(func, args, kwargs)
        inputs = list(tensors((*args, *kwargs.values())))
        outputs = list(tensors((result,)))
        if inputs and outputs:
            self._carry(packet, inputs, outputs)
        return result

    def _carry(self, packet: Any, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        keys = [self.key(value) for value in inputs]
        out = self.key(outputs[0])
        if len(keys) == 1 and keys[0] == out:
            return  # a view
        made = [self.made_of.get(key) for key in keys]
        if packet in _PRODUCTS:
            if self._product(packet, inputs, keys, made, outputs[0]):
                return
        elif packet == "embedding" and made[0]:
            if self._chosen(keys[1:], outputs[0]):
                self.flow.routed |= self._named(made[0])
            self._apply(made[0], inputs[1], outputs[0], None)
            return
        self._follow(packet, inputs, keys, made, outputs)

    def _follow(
        self,
        packet: str,
        inputs: list[torch.Tensor],
        keys: list[int],
        made: list[frozenset[str] | None],
        outputs: list[torch.Tensor],
    ) -> None:
        """Every operation that is no product: labels go on to what it returns."""
        labels = [self.of(value) for value in inputs]
        union = NOTHING.union(*labels)
        out = self.key(outputs[0])
        if union and any(made) and packet in _ELEMENTWISE:
            for one in made:
                for path in one or ():
                    self.flow.uses.setdefault(path, set()).add(packet)
        elif any(made) and not union:
            self._derive(packet, keys, made, outputs)
            return
        if packet in _CHOICES and union and not outputs[-1].dtype.is_floating_point:
            size = inputs[0].shape[-1] if inputs[0].ndim else 1
            choice = Choice(union, size, keys[0] in self.products)
            self.chosen |= {self.key(outputs[-1]): choice}
        elif self._chosen(keys, outputs[0]) and packet in _PICKS:
            union = marked(union, ROUTED)
        if packet in _SOFTMAX or (packet in _POSITIVE and keys[0] in self.products):
            if keys[0] in self.products:
                self.weights[out] = self.products[keys[0]]
                self.lengths[out] = self.lengths[keys[0]]
            union = marked(union, ACTIVATED)
        else:
            self._inherit(packet, keys, labels, outputs)
        if packet == "mul" and len(labels) == 2:
            self._gate(*labels)
        if packet in _NONLINEAR:
            union = marked(union, ACTIVATED | (POSITIVE if packet in _POSITIVE else 0))
        if packet in _SCANS:
            union = marked(union, MIXED)
        for value in outputs:
            key = self.key(value)
            if key in self.roots and key in keys and packet not in _NONLINEAR and union <= self.of(value):
                continue  # a change in place of a matrix's output
            if key not in keys:
                self.labels[key] = union
            elif union:
                self.roots.pop(key, None)
                self.labels[key] = union

    def _chosen(self, keys: list[int], output: torch.Tensor) -> bool:
        """A choice is one once its indices are used: a maximum may be taken for its value alone."""
        choices = [self.chosen[key] for key in keys if key in self.chosen]
        if not choices:
            return False
        self.flow.choices += [choice for choice in choices if choice not in self.flow.choices]
        if not output.dtype.is_floating_point:
            self.chosen[self.key(output)] = choices[0]
        return True

    def _derive(
        self, packet: str, keys: list[int], made: list[frozenset[str] | None], outputs: list[torch.Tensor]
    ) -> None:
        union = frozenset[str]().union(*(one for one in made if one))
        if packet in _PICKS and self._chosen(keys, outputs[0]):
            self.flow.routed |= self._named(union)
        for value in outputs:
            self.made_of.setdefault(self.key(value), union)

    def _product(
        self,
        packet: str,
        inputs: list[torch.Tensor],
        keys: list[int],
        made: list[frozenset[str] | None],
        output: torch.Tensor,
    ) -> bool:
        first, second = _PRODUCTS[packet]
        left, right = inputs[first], inputs[second]
        mine = self._mine(made[first], left), self._mine(made[second], right)
        if mine[0] and mine[1]:
            # Both made of parameters: the one whose own module runs is the map, the other what it reads.
            mine = (mine[0] if self._running(mine[0]) else None, mine[1] if self._running(mine[1]) else None)
        if bool(mine[0]) != bool(mine[1]):
            weight, other = (left, right) if mine[0] else (right, left)
            use = _Use(weight=weight, after=not mine[0], convolution=packet == "convolution")
            self._apply(mine[0] or mine[1] or frozenset(), other, output, use)
            return True
        if packet == "convolution":
            return False
        self._multiply((keys[first], keys[second]), (left, right), output)
        return True

    def _mine(self, made: frozenset[str] | None, tensor: torch.Tensor) -> frozenset[str] | None:
        return None if made is None or self.of(tensor) else made

    def _multiply(
        self, keys: tuple[int, int], pair: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor
    ) -> None:
        """Activation times activation: scores, or what attends, or a step of a recurrence."""
        out = self.key(output)
        q, k = self.of(pair[0]), self.of(pair[1])
        left, right = self.weights.get(keys[0]), self.weights.get(keys[1])
        self.roots.pop(out, None)
        if left and right:
            self.weights[out], self.lengths[out] = left | right, self.lengths[keys[0]]
            self.labels[out] = q | k
        elif left or right:
            at = keys[0] if left else keys[1]
            self.attend(output, left or right or frozenset(), k if left else q, self.lengths[at])
        else:
            self.labels[out] = marked(q | k, MIXED)
            if q and k:
                self.products[out] = frozenset({(q, k)})
                self.lengths[out] = (pair[0].shape[-2], pair[1].shape[-1])

    def _inherit(
        self, packet: str, keys: list[int], labels: list[Labels], outputs: list[torch.Tensor]
    ) -> None:
        # Scaling, masking, biasing, casting and dropout lie between a product and its softmax, and after it.
        for marks in (self.products, self.weights):
            held = [key for key in keys if key in marks]
            if not held:
                continue
            union = frozenset[tuple[Labels, Labels]]().union(*(marks[key] for key in held))
            for value in outputs:
                marks[self.key(value)] = union
                self.lengths[self.key(value)] = self.lengths[held[0]]
            if marks is self.products and packet == "add":
                for key, found in zip(keys, labels, strict=True):
                    if key not in marks:
                        self.flow.biases |= {i.origin.path for i in found if isinstance(i.origin, View)}

    def attend(
        self,
        output: torch.Tensor,
        pairs: frozenset[tuple[Labels, Labels]],
        v: Labels,
        lengths: tuple[int, int],
    ) -> None:
        """Note one attention operation; ``output`` is what came out."""
        key = self.key(output)
        self.roots.pop(key, None)
        self.labels[key] = frozenset({Label(Attended(len(self.flow.attentions)))})
        self.flow.attentions.append(Attention(pairs, v, lengths))

    def _gate(self, left: Labels, right: Labels) -> None:
        if not left or not right or {item.origin for item in left} & {item.origin for item in right}:
            return
        first, second = (any(item.activated for item in side) for side in (left, right))
        if first != second:
            self.flow.gates.append(Gate(left, right) if first else Gate(right, left))
        elif first:
            self.flow.gates += [Gate(left, right), Gate(right, left)]

    def _apply(
        self, made: frozenset[str], read: torch.Tensor, output: torch.Tensor, use: _Use | None
    ) -> None:
        """A matrix is used as a map: what comes out has it as its origin from here on. No use is a look-up."""
        labels = NOTHING if use is None else self.of(read)
        out = self.key(output)
        width, into = (output.shape[-1], 0) if use is None else use.widths(read, output)
        kernel = use is not None and use.kernel
        first = ""
        for name in sorted(made):
            first, alive = self._alias(name)
            known = self.flow.calls.get(first)
            if known is not None and known.stage != self.stage:
                self.flow.repeated.add(first)
            if known is None:
                self.flow.calls[first] = Call(
                    order=len(self.flow.calls),
                    stage=self.stage,
                    reads=(self.stage, self.key(read), int(read.storage_offset()), read.numel()),
                    labels=labels,
                    width=width,
                    into=into,
                    transposed=use is not None and use.transposed,
                    lookup=use is None,
                    kernel=kernel,
                    alive=alive,
                )
        self.products.pop(out, None)
        self.roots.pop(out, None)
        if use is not None and use.convolution:
            own = Label(View(first, None, width), MIXED if kernel else 0)
            self.labels[out] = (marked(labels, MIXED) if kernel else NOTHING) | {own}
            return
        self.roots[out] = (first, width)
        self.labels.pop(out, None)
        if any(label.marks & ROUTED for label in labels):
            self.flow.routed.add(first)

    def _alias(self, name: str) -> tuple[str, bool]:
        """Of the names of one parameter the one whose module runs, and whether one of them does."""
        running = set(self.running)
        for path in self.names[name]:
            if path.rpartition(".")[0] in running:
                return path, True
        return name, False

    def _named(self, made: frozenset[str]) -> set[str]:
        return {self._alias(name)[0] for name in made}

    def _running(self, made: frozenset[str]) -> bool:
        return any(self._alias(name)[1] for name in made)


def marked(labels: Labels, marks: int) -> Labels:
    """The same origins, marked."""
    return frozenset(Label(label.origin, label.marks | marks) for label in labels)


@dataclass(frozen=True, slots=True)
class _Use:
    """How a factor made of a parameter stood in a product: before or after what it was multiplied with."""

    weight: torch.Tensor
    after: bool
    convolution: bool

    @property
    def kernel(self) -> bool:
        """A convolution over more than one token."""
        return self.convolution and any(size > 1 for size in self.weight.shape[2:])

    @property
    def transposed(self) -> bool:
        """Whether the contracted dimension is the outer one in memory: stored as (d_in, d_out)."""
        if self.weight.ndim < 2 or self.convolution:
            return False
        contracted, kept = (-2, -1) if self.after else (-1, -2)
        return self.weight.stride(contracted) > self.weight.stride(kept)

    def widths(self, read: torch.Tensor, output: torch.Tensor) -> tuple[int, int]:
        """Features that come out, and that go in."""
        if self.convolution:
            return output.shape[1], read.shape[1]
        if not self.after and output.ndim > 1:
            return output.shape[-2], read.shape[-2]  # W x, a column for every token
        return output.shape[-1], read.shape[-1]


def tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """All tensors in arguments, lists in them included."""
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from tensors(value)
        elif isinstance(value, torch.Tensor):
            yield value


def _called(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return func(*args, **kwargs)
    except (RuntimeError, NotImplementedError):
        # Code that makes small tables on the CPU and adds them to what has no memory here.
        if not any(value.device.type == "cpu" for value in tensors((*args, *kwargs.values()))):
            raise
        move: Any = partial(tree_map_only, torch.Tensor, _without_memory)
        return func(*move(args), **move(kwargs))


def _without_memory(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("meta")


class Shortcuts(TorchFunctionMode):
    """Calls that are seen better from Python than from the dispatcher.

    ``scaled_dot_product_attention`` is noted as a whole: on the meta device it would fall apart into a
    dozen operations. ``x[..., [-1], :]`` is read as ``x[..., -1:, :]``: the two are equal, but the first reaches
    the dispatcher as an index tensor whose value the meta device has lost.
    """

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

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
        watch = self.watch
        output = q.new_empty((*q.shape[:-1], v.shape[-1]))
        watch.attend(output, frozenset({(watch.of(q), watch.of(k))}), watch.of(v), (q.shape[-2], k.shape[-2]))
        mask = given["attn_mask"]
        if mask is not None and watch.of(mask):
            watch.flow.biases |= {i.origin.path for i in watch.of(mask) if isinstance(i.origin, View)}
        return output


def _slice(item: Any) -> Any:
    if isinstance(item, list) and len(item) == 1 and type(item[0]) is int:
        return slice(item[0], item[0] + 1 or None)
    return item
