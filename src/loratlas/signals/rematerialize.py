"""Activations made once more in the backward pass from what autograd keeps anyway, instead of being held as well.

What a matrix reads is often the last, cheap step of a chain whose parts the frozen model needs for its own backward
pass: a norm's scaled input, a gate times a value. Such steps are repeated on request. A tensor is remade only if, at
the first use of its site, the remade one was equal up to rounding; everything else is held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Make = Callable[[], torch.Tensor]

DEEPEST = 6
"""Steps that are repeated at most."""

ROUNDING = 4
"""Distances between neighbouring numbers by which a remade tensor may be off, in the mean over its entries."""


class Rematerialize:
    """Knows, site by site, whether a tensor can be remade."""

    def __init__(self) -> None:
        self._proven: dict[str, bool] = {}

    def __call__(self, name: str, x: torch.Tensor) -> Make:
        """A function that gives x, without holding it where that is possible.

        Args:
            name: of the site; what was proven for it once holds for its later uses.
            x: with its graph.
        """
        if self._proven.get(name, True):
            make = _made(x.grad_fn, 0)
            if make is not None and (name in self._proven or _equal(make, x)):
                self._proven[name] = True
                return make
            self._proven[name] = False
        held = x.detach()
        return lambda: held


def _equal(make: Make, x: torch.Tensor) -> bool:
    try:
        with torch.no_grad():
            made = make()
    except RuntimeError:  # a step that needs what autograd did not keep after all
        return False
    if made.shape != x.shape or made.dtype != x.dtype:
        return False
    off = torch.linalg.vector_norm(made - x, dtype=torch.float32)
    return bool(off <= ROUNDING * torch.finfo(x.dtype).eps * torch.linalg.vector_norm(x, dtype=torch.float32))


def _made(node: Any, depth: int) -> Make | None:
    """How the output of a step of the graph is made from kept tensors; None where that is not known."""
    known = None if node is None or depth > DEEPEST else _STEPS.get(node.name())
    return None if known is None else known(node, depth)


def _product(node: Any, depth: int) -> Make | None:
    """a · b: of each factor either the kept one, or how it is made."""
    factors: list[Make] = []
    for name, (before, _) in zip(("self", "other"), node.next_functions, strict=True):
        kept: Make | None = None
        if getattr(node, f"_saved_{name}", None) is not None:
            kept = _kept(node, f"_saved_{name}")
        made = kept or _made(before, depth + 1)
        if made is None:
            return None
        factors.append(made)
    one, two = factors
    return lambda: one() * two()


def _kept(node: Any, name: str) -> Make:
    # Asked for again at every call: to hold the tensor here would keep it alive after its step's backward pass.
    return lambda: getattr(node, name)


def _cast(node: Any, depth: int) -> Make | None:
    made = _made(node.next_functions[0][0], depth + 1)
    dtype = node._input_metadata[0].dtype
    return None if made is None else lambda: made().to(dtype)


def _shaped(node: Any, depth: int) -> Make | None:
    made = _made(node.next_functions[0][0], depth + 1)
    shape = tuple(node._input_metadata[0].shape)
    return None if made is None else lambda: made().reshape(shape)


def _normed(node: Any, depth: int) -> Make:
    """(x − mean) / σ · weight + bias of a layer norm, in float32 as its kernel has it."""

    def make() -> torch.Tensor:
        x, weight, bias = node._saved_input, node._saved_weight, node._saved_bias
        y = (x.float() - node._saved_result1) * node._saved_result2
        y = y if weight is None else y.mul_(weight)
        return (y if bias is None else y.add_(bias)).to(x.dtype)

    return make


_STEPS: dict[str, Callable[[Any, int], Make | None]] = {
    "MulBackward0": _product,
    "ToCopyBackward0": _cast,
    "ViewBackward0": _shaped,
    "UnsafeViewBackward0": _shaped,
    "NativeLayerNormBackward0": _normed,
    "SiluBackward0": lambda node, depth: lambda: torch.nn.functional.silu(node._saved_self),
    "GeluBackward0": lambda node, depth: (
        lambda: torch.nn.functional.gelu(node._saved_self, approximate=node._saved_approximate)
    ),
    "ReluBackward0": lambda node, depth: _kept(node, "_saved_result"),
    "TanhBackward0": lambda node, depth: _kept(node, "_saved_result"),
}
