"""Matrix products on processors that the default way serves badly: emulated 16-bit numbers, and float32 outside MKL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from loratlas.models.load import native_dtype

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


DIRECT_ROWS = 64
"""Fewer rows than this are not worth the way round."""


class Direct(TorchFunctionMode):
    """Products of float32 matrices are taken by oneDNN instead of MKL; without gradients only.

    MKL keeps its wide instructions for processors of its own maker. Measured on one core with AVX-512 of another:
    4,096 × 256 by 256 × 768 at 79 GFLOP/s by MKL, 223 by oneDNN; the two differ by the order of float32 sums.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_grad_enabled():
            return func(*args, **kwargs)
        if func is torch.nn.functional.linear and not kwargs and _direct(args[0], args[1]):
            return _linear(args[0], args[1], args[2] if len(args) > 2 else None)
        # Low-rank layers hold the matrix the other way round, as a view.
        if (
            func in _TIMES
            and not kwargs
            and len(args) == 2
            and _is_view(args[1])
            and _direct(args[0], args[1].t())
        ):
            return _linear(args[0], args[1].t(), None)
        if func is torch.addmm and not kwargs:
            bias, x, turned = list(args)
            if bias.dim() == 1 and _is_view(turned) and _direct(x, turned.t()):
                return _linear(x, turned.t(), bias)
        return func(*args, **kwargs)


_TIMES = frozenset([torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__])


def _is_view(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 2 and value.t().is_contiguous()


def _direct(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a product is one that oneDNN is called for."""
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and type(x) is torch.Tensor
        and weight.dim() == 2
        and weight.is_contiguous()
        and x.dim() >= 2
        and x.numel() >= DIRECT_ROWS * x.shape[-1]
        and len(weight) >= 32
        and not torch.is_autocast_enabled("cpu")
    )


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight.detach(), bias, "none", [], "")


@cache
def mkl_is_slow() -> bool:
    """Whether float32 products go through oneDNN: AVX-512 on a processor that MKL does not know as its own.

    Told by the processor's name and not by a clock, so that one machine computes in one way.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


@contextmanager
def fast_products(model: Any) -> Iterator[None]:
    """Within this context a model on a CPU multiplies as `Widened` or `Direct` does, where that is faster.

    `Widened`: bfloat16 without the instructions. `Direct`: float32 where `mkl_is_slow`.
    """
    weights = list(model.parameters())
    if not weights or weights[0].device.type != "cpu":
        yield
        return
    kinds = {p.dtype for p in weights}
    with ExitStack() as modes:
        if torch.bfloat16 in kinds and native_dtype() != "bfloat16":
            modes.enter_context(Widened())
        if torch.float32 in kinds and mkl_is_slow():
            modes.enter_context(Direct())
        yield
