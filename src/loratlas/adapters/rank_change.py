"""The two factors of one adapter with more directions, or with fewer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SPANNED = 1e-3
"""A proposed direction of length 1 counts as spanned already where so little of it is left outside the span."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Closest:
    """The adapter of a smaller rank.

    Args:
        A, B: factors [k, d_in] and [d_out, k].
        turn_a, turn_b: [k, r], with A' = turn_a A and B' = B turn_bᵀ. Gradients of A' are turn_b times those of A, and
            gradients of B' are those of B times turn_aᵀ.
        lost: share of ‖B A‖² that is gone, 0 to 1.
    """

    A: torch.Tensor
    B: torch.Tensor
    turn_a: torch.Tensor
    turn_b: torch.Tensor
    lost: float


def closest(A: torch.Tensor, B: torch.Tensor, rank: int) -> Closest:
    """The nearest product of a smaller rank, with balanced factors.

        B = Q_B R_B,  Aᵀ = Q_A R_A,  R_B R_Aᵀ = U S Vᵀ:    B' = Q_B U S^½,  A' = S^½ Vᵀ Q_Aᵀ   (first ``rank`` of each)

    By Eckart and Young (1936) no product of that rank is nearer to B A. A direction whose singular value is 0 (B
    begins there) has nothing to be balanced with: it keeps B' = 0, and A' a unit vector of A's span.

    Args:
        A: [r, d_in]. B: [d_out, r].
        rank: 1 to r.

    Example:
        >>> import torch
        >>> A, B = torch.diag(torch.tensor([3.0, 1.0])), torch.eye(2)
        >>> found = closest(A, B, 1)
        >>> (found.B @ found.A).abs().round(decimals=4).tolist(), round(found.lost, 4)
        ([[3.0, 0.0], [0.0, 0.0]], 0.1)
    """
    import torch

    a, b = A.double(), B.double()
    Qa, Ra = torch.linalg.qr(a.t())
    Qb, Rb = torch.linalg.qr(b)
    U, sigma, Vt = torch.linalg.svd(Rb @ Ra.t())
    whole = float(sigma.square().sum())
    lost = float(sigma[rank:].square().sum()) / whole if whole else 0.0
    root = sigma[:rank].sqrt()
    empty = sigma[:rank] <= 1e-12 * sigma.max().clamp_min(1e-300)
    left = torch.where(empty, torch.zeros_like(root), root)
    right = torch.where(empty, torch.ones_like(root), root)
    new_a = right[:, None] * (Vt[:rank] @ Qa.t())
    new_b = (Qb @ U[:, :rank]) * left
    turn_a = right[:, None] * (Vt[:rank] @ torch.linalg.pinv(Ra.t()))
    turn_b = (torch.linalg.pinv(Rb) @ U[:, :rank]) * left
    return Closest(
        A=new_a.to(A.dtype), B=new_b.to(B.dtype), turn_a=turn_a, turn_b=turn_b.t(), lost=min(max(lost, 0.0), 1.0)
    )  # fmt: skip


def new_directions(
    A: torch.Tensor | None,
    count: int,
    *,
    d_in: int,
    seed: int,
    proposed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rows to put under A: proposed directions that A does not span yet, then random ones.

    Proposed directions are made orthogonal to A's rows and to each other, and as long as PEFT's random rows are on
    average, 1/√3; random ones are uniform between ±1/√d_in, as PEFT draws them.

    Args:
        A: [r, d_in] of the adapter; None where there is none yet.
        count: rows to make.
        d_in: their length.
        seed: of the random ones.
        proposed: [m, d_in], best first: right singular vectors of the weight's gradient, say.

    Returns:
        [count, d_in], float32, on the CPU.
    """
    import torch

    rows: list[torch.Tensor] = []
    if proposed is not None and len(proposed):
        span = torch.zeros(d_in, 0, dtype=torch.float64)
        if A is not None and len(A):
            span, _ = torch.linalg.qr(A.detach().double().cpu().t())
        for direction in proposed.detach().double().cpu():
            norm = direction.norm()
            if len(rows) == count or not bool(norm > 0):
                continue
            rest = direction / norm
            for _ in range(2):  # once more, for what rounding has left
                rest = rest - span @ (span.t() @ rest)
            length = rest.norm()
            if float(length) < SPANNED:
                continue
            rest = rest / length
            span = torch.cat([span, rest[:, None]], 1)
            rows.append((rest / 3**0.5).float())
    generator = torch.Generator().manual_seed(seed)
    bound = d_in**-0.5
    drawn = torch.empty(count - len(rows), d_in).uniform_(-bound, bound, generator=generator)
    return torch.cat([torch.stack(rows), drawn]) if rows else drawn
