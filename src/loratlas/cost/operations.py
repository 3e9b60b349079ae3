"""One operation as data: what runs on which shapes, strides and types, to be counted, named and run again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

_aten = torch.ops.aten

_FREE = frozenset({_aten.detach, _aten.alias, _aten.lift_fresh, _aten._unsafe_view, _aten.set_})
_EMPTY = frozenset({_aten.empty, _aten.new_empty, _aten.empty_like, _aten.empty_strided})

_INDEXED = {
    _aten.embedding: 0,
    _aten.index_select: None,
    _aten.index_fill_: None,
    _aten.gather: None,
    _aten.scatter_: None,
}
"""Operations that read indices: the dimension of their first argument that bounds them; None: as their second says."""


class Shaped(NamedTuple):
    """A tensor without its numbers."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Of the memory from its first to its last number."""
        if 0 in self.shape:
            return 0
        last = sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        return (last + 1) * self.dtype.itemsize

    def make(self, device: torch.device, bound: int) -> torch.Tensor:
        """A tensor like it: random numbers, or the indices 0, 1, 2, … below ``bound``."""
        count = self.bytes // self.dtype.itemsize
        if self.dtype.is_floating_point:
            flat = torch.randn(count, device=device).to(self.dtype)
        elif self.dtype == torch.bool:
            flat = torch.zeros(count, dtype=torch.bool, device=device)
        else:
            flat = torch.arange(count, device=device).remainder_(bound).to(self.dtype)
        return flat.as_strided(self.shape, self.stride)


class OperationCall(NamedTuple):
    """One call of one operation, tensors as `Shaped`. Equal calls cost the same."""

    func: Any
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]

    @staticmethod
    def of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> OperationCall:
        """From what a dispatcher saw."""
        return OperationCall(
            func, _shaped(tuple(args)), tuple((name, _shaped(v)) for name, v in kwargs.items())
        )

    @property
    def key(self) -> str:
        """Names all that the cost depends on, alike in every process."""
        words = [*map(_text, self.args), *(f"{name}={_text(value)}" for name, value in self.kwargs)]
        return f"{self.func}({', '.join(words)})"

    @property
    def bytes(self) -> int:
        """Of its arguments."""
        return sum(tensor.bytes for tensor in _tensors((self.args, self.kwargs)))

    def arguments(self, device: torch.device) -> tuple[list[Any], dict[str, Any]]:
        """Real arguments to run it with."""
        packet, first, bound = self.func.overloadpacket, self.args[0] if self.args else None, 1
        if packet in _INDEXED and isinstance(first, Shaped):
            dim = _INDEXED[packet]
            bound = first.shape[self.args[1] if dim is None else dim]
        args = [_real(value, device, bound) for value in self.args]
        return args, {name: _real(value, device, bound) for name, value in self.kwargs}


def is_free(func: Any) -> bool:
    """Whether an operation touches no numbers (a view, fresh memory): the call itself is all its cost."""
    return func.is_view or func.overloadpacket in _FREE or func.overloadpacket in _EMPTY


def _shaped(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return Shaped(tuple(value.shape), value.stride(), value.dtype)
    if isinstance(value, (list, tuple)):
        return tuple([_shaped(item) for item in value])
    return value


def _text(value: Any) -> str:
    if isinstance(value, Shaped):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}/{list(value.stride)}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_text, value))}]"
    return "float" if isinstance(value, float) else str(value)  # a factor's value costs nothing


def _tensors(value: Any) -> Iterator[Shaped]:
    if isinstance(value, Shaped):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _tensors(item)


def _real(value: Any, device: torch.device, bound: int) -> Any:
    if isinstance(value, Shaped):
        return value.make(device, bound)
    if isinstance(value, tuple):
        return [_real(item, device, bound) for item in value]
    return device if isinstance(value, torch.device) else value
