"""The tanh form of GELU in one kernel, where transformers writes it out in eight operations.

    gelu(x) = ½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))

Written out, as gpt2, gpt_neo, gptj and others have it, the backward pass keeps four tensors of the inner width; torch's
own kernel keeps x alone and computes in float32 whatever the type of x. The numbers are the same to rounding.
"""

from __future__ import annotations

from typing import Any

from torch.nn import functional as F  # noqa: N812 (the name everybody knows)
from transformers.activations import FastGELUActivation, NewGELUActivation

from loratlas.adapters.layers.rms_norm import lean_norm


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
    """Let activations and RMS norms compute in fewer passes, in place; of exactly transformers' classes only."""
    for module in model.modules():
        kind = _ONE_KERNEL.get(type(module)) or lean_norm(type(module))
        if kind is not None:
            module.__class__ = kind


def write_out(model: Any) -> None:
    """Undo `fuse`."""
    for module in model.modules():
        kind = _WRITTEN_OUT.get(type(module)) or vars(type(module)).get("_written_out")
        if kind is not None:
            module.__class__ = kind
