"""The tanh form of GELU in one kernel, where transformers writes it out in eight operations.

    gelu(x) = ½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))

Written out, as gpt2, gpt_neo, gptj and others have it, the backward pass keeps four tensors of the inner width; torch's
own kernel keeps x alone and computes in float32 whatever the type of x. The numbers are the same to rounding.
"""

from __future__ import annotations

from typing import Any

from torch.nn import functional as F  # noqa: N812 (the name everybody knows)
from transformers.activations import FastGELUActivation, NewGELUActivation


class OneKernelNewGELU(NewGELUActivation):
    """`NewGELUActivation` in one kernel."""

    def forward(self, input: Any) -> Any:
        return F.gelu(input, approximate="tanh")


class OneKernelFastGELU(FastGELUActivation):
    """`FastGELUActivation` in one kernel; its √(2/π) has ten digits."""

    def forward(self, input: Any) -> Any:
        return F.gelu(input, approximate="tanh")


_ONE_KERNEL = {NewGELUActivation: OneKernelNewGELU, FastGELUActivation: OneKernelFastGELU}
_WRITTEN_OUT = {fused: own for own, fused in _ONE_KERNEL.items()}


def fuse(model: Any) -> None:
    """Let a model's activations compute in one kernel, in place; of exactly transformers' classes only."""
    _swap(model, _ONE_KERNEL)


def write_out(model: Any) -> None:
    """Undo `fuse`."""
    _swap(model, _WRITTEN_OUT)


def _swap(model: Any, classes: dict[Any, Any]) -> None:
    for module in model.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]
