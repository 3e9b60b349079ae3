"""Cutting the ranks of outliers by their singular values, so that padding to one rank costs less.

    BA = U S Vᵀ,  cut to rank k:  B' = U_k √S_k,  A' = √S_k V_kᵀ,  lost = √(Σ_{i>k} s_i² / Σ s_i²)

>>> import torch
>>> site = SiteUpdate(module="m", A=torch.eye(3), B=torch.diag(torch.tensor([4.0, 3.0, 0.0])))
>>> cut, lost = cut_to(site, 1)
>>> cut.rank, round(lost, 3)
(1, 0.6)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from loratlas.serving.updates import SiteUpdate

if TYPE_CHECKING:
    import torch


def cut_to(site: SiteUpdate, rank: int) -> tuple[SiteUpdate, float]:
    """The nearest change of a smaller rank.

    Args:
        site: of rank r. rank: k; at least 1.

    Returns:
        The change, and the share of its Frobenius norm that is lost, the largest one of a stack of experts.

    Source: Eckart and Young, 1936; the factors are taken apart by QR first, so that no d_out × d_in matrix is made.
    """
    if rank >= site.rank:
        return site, 0.0
    left, S, right = _decomposed(site)
    root = S[..., :rank].sqrt()
    B = left[..., :, :rank] * root[..., None, :]
    A = root[..., :, None] * right[..., :rank, :]
    return replace(site, A=A.float().contiguous(), B=B.float().contiguous()), float(_lost(S)[rank])


def smallest_rank(
    sites: Iterable[SiteUpdate], tolerance: float, allowed: Callable[[int], int | None]
) -> tuple[int, float]:
    """The smallest rank of an engine at which no site loses more than the tolerance.

    Args:
        sites: of an adapter.
        tolerance: share of a change's Frobenius norm, from 0 to 1.
        allowed: the engine's rank that holds a rank; None where there is none.

    Returns:
        The rank, and the largest share that is lost at it.
    """
    losses = [_lost(_decomposed(site)[1]) for site in sites]
    largest = max(len(lost) - 1 for lost in losses)
    for rank in sorted({r for k in range(1, largest + 1) if (r := allowed(k)) is not None}):
        lost = max(float(each[min(rank, len(each) - 1)]) for each in losses)
        if lost <= tolerance:
            return rank, lost
    return largest, 0.0


def lost_at(sites: Iterable[SiteUpdate], rank: int) -> float:
    """The largest share of a site's change that cutting all of them to a rank would lose."""
    losses = [_lost(_decomposed(site)[1]) for site in sites]
    return max(float(lost[min(rank, len(lost) - 1)]) for lost in losses)


def _decomposed(site: SiteUpdate) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U [.., d_out, r], S [.., r] and Vᵀ [.., r, d_in] of B A."""
    import torch

    q_out, r_out = torch.linalg.qr(site.B.double())
    q_in, r_in = torch.linalg.qr(site.A.double().transpose(-1, -2))
    U, S, Vh = torch.linalg.svd(r_out @ r_in.transpose(-1, -2), full_matrices=False)
    return q_out @ U, S, Vh @ q_in.transpose(-1, -2)


def _lost(S: torch.Tensor) -> torch.Tensor:
    """Share of the norm that is lost at ranks 0 … r, the largest of a stack: [r + 1]."""
    import torch

    energy = S.square().reshape(-1, S.shape[-1])
    left = energy.flip(-1).cumsum(-1).flip(-1)
    left = torch.cat([left, torch.zeros_like(left[:, :1])], dim=-1)
    total = energy.sum(-1, keepdim=True)
    # A change that is zero loses nothing.
    return (left / total.clamp_min(torch.finfo(left.dtype).tiny)).sqrt().amax(0)
