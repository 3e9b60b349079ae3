"""The products of low-rank factors, for one run or for several side by side.

Sites of one input x [T, d_in] have factors Aᵢ [r, d_in] and Bᵢ [d_out, r]; several runs in one pass have such a set
each, for their own rows. With h = x [A₁; A₂; …]ᵀ and upstream gradients gᵢ

    yᵢ += sᵢ · hᵢ Bᵢᵀ        ghᵢ = sᵢ · gᵢ Bᵢ        dBᵢ = sᵢ · gᵢᵀ hᵢ        dx += [gh₁ gh₂ …] [A₁; A₂; …]

`loratlas.adapters.layers.lean_lora` calls these for all rows and returns the gradients of the factors to autograd;
`loratlas.training.fleet.segmented_lora` for the rows of each run, and adds them to the run's own vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from loratlas.adapters.layers.sparse_dropout import drop_, dropped


def affine(x: torch.Tensor, W: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x W + b in one product."""
    return x @ W if bias is None else torch.addmm(bias, x, W)


def together(parts: list[Any], dim: int = 0) -> torch.Tensor:
    """Tensors behind one another, without a copy where there is one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def lowered(x: torch.Tensor, down: torch.Tensor, drop: torch.Tensor | None, lift: float) -> torch.Tensor:
    """h = x∘m/(1 − p) · [A₁; A₂; …]ᵀ, [T, Σ r].

    Args:
        x: [T, d_in]. down: [Σ r, d_in]. drop: what is dropped of x, or None. lift: 1/(1 − p).
    """
    h = dropped(x, drop) @ down.t()
    return h if lift == 1.0 else h.mul_(lift)


def raise_into(
    outputs: Sequence[torch.Tensor], h: torch.Tensor, ups: Sequence[tuple[torch.Tensor, float]]
) -> None:
    """yᵢ += sᵢ · hᵢ Bᵢᵀ, in place.

    Args:
        outputs: yᵢ [T, d_out]. h: of `lowered`. ups: Bᵢ and sᵢ.
    """
    start = 0
    for y, (B, scale) in zip(outputs, ups, strict=True):
        y.addmm_(h[:, start : start + B.shape[1]], B.t(), alpha=scale)
        start += B.shape[1]


def slopes(
    upstream: Sequence[torch.Tensor | None],
    h: torch.Tensor,
    ups: Sequence[tuple[torch.Tensor, float]],
    lift: float,
    needed: Sequence[bool],
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """The gradients between the factors, [gh₁ gh₂ …] [T, Σ r], and of each Bᵢ.

    Args:
        upstream: gᵢ [T, d_out]; None of an output that nobody used. h: of `lowered`. ups: Bᵢ and sᵢ.
        lift: 1/(1 − p). needed: whether the gradient of Bᵢ is.
    """
    small: list[torch.Tensor] = []
    d_up: list[torch.Tensor | None] = []
    start = 0
    for g, (B, scale), wanted in zip(upstream, ups, needed, strict=True):
        rank = B.shape[1]
        if g is None:
            small.append(h.new_zeros(len(h), rank))
            d_up.append(None)
        else:
            small.append((g @ B).mul_(scale * lift))
            # hᵀg and its transpose, which matrix libraries take two thirds of the time of gᵀh for.
            d_up.append((h[:, start : start + rank].t() @ g).mul_(scale).t() if wanted else None)
        start += rank
    return together(small, dim=1), d_up


def add_to_input(dx: torch.Tensor, gh: torch.Tensor, down: torch.Tensor, drop: torch.Tensor | None) -> None:
    """dx += [gh₁ gh₂ …] [A₁; A₂; …], in place and only where x was kept."""
    if drop is None:
        dx.addmm_(gh, down)
    else:
        dx.add_(drop_(gh @ down, drop))


def back_through(
    matrices: Sequence[torch.Tensor], upstream: Sequence[torch.Tensor | None]
) -> torch.Tensor | None:
    """Σ gᵢ Wᵢᵀ, [T, d_in], through frozen matrices Wᵢ [d_in, d_out]; None where no output was used."""
    dx: torch.Tensor | None = None
    for W, g in zip(matrices, upstream, strict=True):
        if g is not None:
            dx = g @ W.t() if dx is None else dx.addmm_(g, W.t())
    return dx
