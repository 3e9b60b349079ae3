"""Matrix products of 16-bit numbers on processors that only emulate them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from loratlas.anatomy.load import native_dtype

_PRODUCTS = frozenset(
    [
        torch.nn.functional.linear,
        torch.matmul,
        torch.Tensor.matmul,
        torch.Tensor.__matmul__,
        torch.addmm,
        torch.bmm,
    ]
)


class Widened(TorchFunctionMode):
    """Products of bfloat16 matrices are taken in float32 and rounded to bfloat16 once, as the emulation does.

    bfloat16 numbers are float32 numbers, and their products are exact in float32; a sum of them is kept in float32
    either way. So the result is that of the emulated product up to the order of the sum, at the speed of float32: 100
    instead of 31 GFLOP/s, measured on one core without the instructions. Only the operands of one product are wide at
    a time.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _PRODUCTS and args[0].dtype == torch.bfloat16 and "out" not in kwargs:
            wide = [_wide(a) for a in args]
            return func(*wide, **{name: _wide(value) for name, value in kwargs.items()}).to(torch.bfloat16)
        if func is torch.Tensor.addmm_ and args[0].dtype == torch.bfloat16:
            return args[0].copy_(torch.addmm(*(_wide(a) for a in args), **kwargs))
        return func(*args, **kwargs)


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value


@contextmanager
def fast_products(model: Any) -> Iterator[None]:
    """Within this context a bfloat16 model on a CPU without the instructions multiplies as `Widened` does."""
    weight = next(model.parameters(), None)
    if weight is None or weight.device.type != "cpu" or native_dtype() == "bfloat16":
        yield
        return
    if not any(p.dtype == torch.bfloat16 for p in model.parameters()):
        yield
        return
    with Widened():
        yield
