"""The updates that an adapter's files hold, site by site, and their singular values; no base is needed.

An update is s·B·A with A [r, d_in] and B [d_out, r]. Its singular values are those of the r × r matrix
s·R_B·R_Aᵀ, where B = Q_B·R_B and Aᵀ = Q_A·R_A: nothing of the size d_out × d_in is ever made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from loratlas.adapters.stored.read_adapter import WEIGHTS, AdapterFolder, refuse_nonfinite
from loratlas.errors import ModelError
from loratlas.serving.adapter_header import AdapterHeader, FactorPair

if TYPE_CHECKING:
    import torch


def updates_of(contents: AdapterFolder) -> tuple[FactorPair, ...]:
    """The updates of an adapter, in the order of its file, from names and shapes alone.

    Args:
        contents: of its folder.

    Raises:
        ModelError: a factor without its partner, a pair of factors that cannot be multiplied, or none at all.
    """
    header = AdapterHeader(folder=contents.folder, config=contents.config, tensors=contents.tensors)
    if not header.pairs:
        raise ModelError(
            given=str(contents.folder / WEIGHTS),
            found="no factor of LoRA in it",
            instead="the adapter's files as PEFT wrote them",
        )
    return header.pairs


def path_of(pair: FactorPair) -> str:
    """Name of the parameter that a pair of factors changes."""
    return f"{pair.module}.{pair.parameter or 'weight'}"


def rank_cost(pair: FactorPair) -> int:
    """Parameters of one rank."""
    return pair.experts * (pair.d_in + pair.d_out)


def read_factors(
    contents: AdapterFolder, updates: Sequence[FactorPair]
) -> Iterator[tuple[FactorPair, torch.Tensor, torch.Tensor]]:
    """A and B of each update, one pair in memory at a time.

    Args:
        contents: of the adapter's folder.
        updates: some of :func:`updates_of`.

    Returns:
        Update, A [r, d_in], B [d_out, r] in float64 on the CPU; of a stack with the experts in front.

    Raises:
        ModelError: a number in them is NaN or infinite.
    """
    import torch
    from safetensors import safe_open

    with safe_open(contents.folder / WEIGHTS, framework="pt", device="cpu") as file:
        for update in updates:
            A, B = file.get_tensor(update.a).to(torch.float64), file.get_tensor(update.b).to(torch.float64)
            refuse_nonfinite({update.a: A, update.b: B}, given=str(contents.folder / WEIGHTS))
            if update.experts > 1:
                # PEFT keeps the experts of A one below the other, those of B interleaved.
                A = A.reshape(update.experts, update.rank, -1)
                B = B.reshape(B.shape[0], update.rank, update.experts).permute(2, 0, 1)
            yield update, A, B


def singular_values(A: torch.Tensor, B: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Singular values of scale·B·A, largest first.

    Args:
        A: [..., r, d_in]. B: [..., d_out, r]. scale: the factor.

    Returns:
        [..., min(r, d_out, d_in)].

    >>> import torch
    >>> singular_values(torch.eye(2, 5), torch.diag(torch.tensor([3.0, 2.0])), 2.0)
    tensor([6., 4.])
    """
    import torch

    Rb = torch.linalg.qr(B, mode="r").R
    Ra = torch.linalg.qr(A.transpose(-1, -2), mode="r").R
    return torch.linalg.svdvals(Rb @ Ra.transpose(-1, -2)) * abs(scale)


def effective_rank(values: torch.Tensor) -> float:
    """How many directions an update really uses: exp of the entropy of its normalised singular values.

        exp(−Σ p_i ln p_i),   p_i = σ_i / Σσ

    1 where one direction has everything, r where all r are equally large, 0 of an update that is zero.

    Args:
        values: [..., r] singular values; of a stack the mean over its experts.

    >>> import torch
    >>> effective_rank(torch.tensor([2.0, 2.0, 0.0])), effective_rank(torch.zeros(3))
    (2.0, 0.0)

    Source:
        O. Roy and M. Vetterli (2007), The effective rank: a measure of effective dimensionality, EUSIPCO.
    """
    import torch

    total = values.sum(-1, keepdim=True)
    p = values / total.clamp_min(torch.finfo(values.dtype).tiny)
    ranks = torch.exp(-torch.special.xlogy(p, p).sum(-1)) * (total[..., 0] > 0)
    return float(ranks.mean())
