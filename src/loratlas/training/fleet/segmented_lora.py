"""Plain matrices under several runs: one frozen product for all rows, the low-rank part run by run.

Run k owns the rows [s_k, e_k) and has factors of its own at the sites of its own plan, of any rank:

    y[s_k:e_k] = x[s_k:e_k] Wᵀ + b + scale_k · (x[s_k:e_k] A_kᵀ) B_kᵀ

A NaN of one run stays in its own rows (a masked product over all runs would spread it: 0 · NaN is NaN), and a run costs
nothing where it adapts nothing. Gradients of the factors are added where they belong, into the run's own vector,
without leaves in the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from loratlas.adapters.layers.low_rank import (
    add_to_input,
    affine,
    back_through,
    lowered,
    raise_into,
    slopes,
    together,
)
from loratlas.adapters.layers.sparse_dropout import dropped
from loratlas.training.fleet.adapter_slots import SlotFactors

MATRICES = (torch.nn.Linear, Conv1D)
"""Types whose modules are plain matrices."""


def weights(module: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """W as it multiplies x from the right, [d_in, d_out], and the bias."""
    return (module.weight if isinstance(module, Conv1D) else module.weight.t()), module.bias


def frozen(module: Any, x: torch.Tensor) -> torch.Tensor:
    """What the base's matrix makes of x [T, d_in]."""
    return affine(x, *weights(module))


@dataclass(slots=True)
class Segment:
    """A run's rows at one group of sites: factors by place of the site, what is dropped, 1/(1 − p)."""

    rows: slice
    factors: list[tuple[int, SlotFactors]]
    drop: torch.Tensor | None
    lift: float

    def read(self, x: torch.Tensor) -> torch.Tensor:
        """What the run's adapters see."""
        return dropped(x[self.rows], self.drop)

    def down(self) -> torch.Tensor:
        """[A₁; A₂; …] of the sites."""
        return together([f.A for _, f in self.factors])

    def ups(self) -> list[tuple[torch.Tensor, float]]:
        """Bᵢ and the scale of each site."""
        return [(f.B, f.scale) for _, f in self.factors]


class SegmentedLora(torch.autograd.Function):
    """(x [T, d_in], anchor, weights of the sites, parts) → y [T, d_out] of every site."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        anchor: torch.Tensor,
        matrices: Sequence[tuple[torch.Tensor, torch.Tensor | None]],
        parts: Sequence[Segment],
    ) -> tuple[torch.Tensor, ...]:
        outputs = [affine(x, W, bias) for W, bias in matrices]
        small = []
        for part in parts:
            h = lowered(x[part.rows], part.down(), part.drop, part.lift)
            raise_into([outputs[index][part.rows] for index, _ in part.factors], h, part.ups())
            small.append(h)
        ctx.save_for_backward(x, *small)
        ctx.matrices, ctx.parts = [W for W, _ in matrices], parts
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *upstream: torch.Tensor | None
    ) -> tuple[Any, ...]:
        x, *small = ctx.saved_tensors
        dx = back_through(ctx.matrices, upstream) if ctx.needs_input_grad[0] else None
        for part, h in zip(ctx.parts, small, strict=True):
            given = [None if (g := upstream[index]) is None else g[part.rows] for index, _ in part.factors]
            slope, d_up = slopes(given, h, part.ups(), part.lift, [True] * len(given))
            if dx is not None:
                add_to_input(dx[part.rows], slope, part.down(), part.drop)
            start, d_down = 0, slope.t() @ part.read(x)
            for (_, f), d_B in zip(part.factors, d_up, strict=True):
                if d_B is not None:
                    f.to_up.add_(d_B)
                f.to_down.add_(d_down[start : start + len(f.A)])
                start += len(f.A)
        return dx, None, None, None
