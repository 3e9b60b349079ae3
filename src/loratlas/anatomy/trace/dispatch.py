"""Carry labels from tensor to tensor while a model runs on the meta device.

Every operation is seen below the modules, so that it makes no difference whether a matrix is applied by its own
module, by another one, as a raw parameter in an einsum, or as a slice of a stack: where one factor of a product
is made of a parameter alone and the other is an activation, that parameter is a map.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from loratlas.anatomy.trace.flow_records import (
    ACTIVATED,
    MIXED,
    NOTHING,
    POSITIVE,
    ROUTED,
    Choice,
    Labels,
    View,
)
from loratlas.anatomy.trace.meta_values import answer
from loratlas.anatomy.trace.products import PRODUCTS, Made, look_up, product
from loratlas.anatomy.trace.provenance import Labelled, Pairs, marked

_SOFTMAX = frozenset({"_softmax", "_safe_softmax"})
_POSITIVE = frozenset({"exp", "exp2", "softplus"})
_NONLINEAR = _POSITIVE | {
    "silu", "gelu", "relu", "sigmoid", "log_sigmoid_forward", "tanh", "erf", "hardtanh", "hardswish",
    "leaky_relu", "elu", "mish", "expm1",
}  # fmt: skip
_PICKS = frozenset({"index", "index_select", "gather", "embedding"})
_CHOICES = frozenset({"topk", "argmax", "max"})
_SCANS = frozenset({"cumsum", "logcumsumexp"})
_ELEMENTWISE = frozenset({"mul", "add", "sub", "div", "addcmul", "lerp", "where"})


class LabelDispatch(TorchDispatchMode):
    """See the module's docstring.

    Args:
        known: the labels that are carried.
    """

    def __init__(self, known: Labelled) -> None:
        super().__init__()
        self.known = known

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func.overloadpacket.__name__.removesuffix("_")
        answered, result = answer(func.overloadpacket, args, kwargs)
        if not answered:
            result = _called(func, args, kwargs)
        inputs = list(tensors((*args, *kwargs.values())))
        outputs = list(tensors((result,)))
        if inputs and outputs:
            self._carry(packet, inputs, outputs)
        return result

    def _carry(self, packet: Any, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        known = self.known
        keys = [known.key(value) for value in inputs]
        out = known.key(outputs[0])
        if len(keys) == 1 and keys[0] == out:  # a view
            known.cut(inputs[0], outputs)
            return
        made = [known.made_of.get(key) for key in keys]
        if packet in PRODUCTS:
            if product(known, packet, inputs, made, outputs[0]):
                return
        elif packet == "embedding" and made[0]:
            if self._chosen(keys[1:], outputs[0]):
                known.flow.routed |= known.named(made[0])
            look_up(known, made[0], inputs[1], outputs[0])
            return
        self._follow(packet, inputs, keys, made, outputs)

    def _follow(
        self,
        packet: str,
        inputs: list[torch.Tensor],
        keys: list[int],
        made: list[Made],
        outputs: list[torch.Tensor],
    ) -> None:
        """Every operation that is no product: labels go on to what it returns."""
        known = self.known
        labels = [known.of(value) for value in inputs]
        union = NOTHING.union(*labels)
        out = known.key(outputs[0])
        if union and any(made) and packet in _ELEMENTWISE:
            for one in made:
                for path in one or ():
                    known.flow.uses.setdefault(path, set()).add(packet)
        elif any(made) and not union:
            self._derive(packet, keys, made, outputs)
            return
        if packet in _CHOICES and union and not outputs[-1].dtype.is_floating_point:
            size = inputs[0].shape[-1] if inputs[0].ndim else 1
            choice = Choice(union, size, keys[0] in known.products)
            known.chosen |= {known.key(outputs[-1]): choice}
        elif self._chosen(keys, outputs[0]) and packet in _PICKS:
            union = marked(union, ROUTED)
        if packet in _SOFTMAX or (packet in _POSITIVE and keys[0] in known.products):
            if keys[0] in known.products:
                known.weights[out] = known.products[keys[0]]
                known.lengths[out] = known.lengths[keys[0]]
            union = marked(union, ACTIVATED)
        else:
            self._inherit(packet, keys, labels, outputs)
        if packet == "mul" and len(labels) == 2:
            known.gate(*labels)
        if packet == "add" and known.sum(
            [value for value, carried in zip(inputs, labels, strict=True) if carried], outputs[0]
        ):
            return
        if packet in _NONLINEAR:
            union = marked(union, ACTIVATED | (POSITIVE if packet in _POSITIVE else 0))
        if packet in _SCANS:
            union = marked(union, MIXED)
        for value in outputs:
            key = known.key(value)
            if key in known.roots and key in keys and packet not in _NONLINEAR and union <= known.of(value):
                continue  # a change in place of a matrix's output
            if key not in keys:
                known.labels[key] = union
            elif union:
                known.roots.pop(key, None)
                known.labels[key] = union

    def _chosen(self, keys: list[int], output: torch.Tensor) -> bool:
        """A choice is one once its indices are used: a maximum may be taken for its value alone."""
        known = self.known
        choices = [known.chosen[key] for key in keys if key in known.chosen]
        if not choices:
            return False
        known.flow.choices += [choice for choice in choices if choice not in known.flow.choices]
        if not output.dtype.is_floating_point:
            known.chosen[known.key(output)] = choices[0]
        return True

    def _derive(self, packet: str, keys: list[int], made: list[Made], outputs: list[torch.Tensor]) -> None:
        known, union = self.known, frozenset[str]().union(*(one for one in made if one))
        if packet in _PICKS and self._chosen(keys, outputs[0]):
            known.flow.routed |= known.named(union)
        for value in outputs:
            known.made_of.setdefault(known.key(value), union)

    def _inherit(
        self, packet: str, keys: list[int], labels: list[Labels], outputs: list[torch.Tensor]
    ) -> None:
        known = self.known
        # Scaling, masking, biasing, casting and dropout lie between a product and its softmax, and after it.
        for marks in (known.products, known.weights):
            held = [key for key in keys if key in marks]
            if not held:
                continue
            union = Pairs().union(*(marks[key] for key in held))
            for value in outputs:
                marks[known.key(value)] = union
                known.lengths[known.key(value)] = known.lengths[held[0]]
            if marks is known.products and packet == "add":
                for key, carried in zip(keys, labels, strict=True):
                    if key not in marks:
                        known.flow.biases |= {i.origin.path for i in carried if isinstance(i.origin, View)}


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
    except RuntimeError:
        # Code that makes small tables on the CPU and adds them to what has no memory here.
        if not any(value.device.type == "cpu" for value in tensors((*args, *kwargs.values()))):
            raise
        move: Any = partial(tree_map_only, torch.Tensor, _without_memory)
        return func(*move(args), **move(kwargs))


def _without_memory(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("meta")
