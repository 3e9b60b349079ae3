"""Adam's moments of a parameter, and what becomes of them when the parameter's basis changes.

Factors change basis as A' = T A and B' = B S, with T [k, r] and S [r, k]. With G the gradient of the weight and s the
scale, g_A = s Bᵀ G and g_B = s G Aᵀ, so that gradients of the new factors follow from those of the old ones:

    g_A' = Sᵀ g_A,      g_B' = g_B Tᵀ

With R the matrix that acts on the rows of A (Sᵀ), or on the columns of B (T),

    m' = R m           exact: a decayed mean of gradients is linear in them
    v' = (R ∘ R) v     approximate: E(Σ_j R_ij g_j)² without the products of unlike directions
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BETAS = (0.9, 0.999)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """What Adam keeps of one parameter, float32 and shaped like it.

    Args:
        first: decayed mean of its gradients.
        second: decayed mean of their squares.
        age: steps that they have taken part in, of a shape that broadcasts to the parameter's; decides the bias
            correction. None: as many as the run has.
    """

    first: torch.Tensor
    second: torch.Tensor
    age: torch.Tensor | None = None


def rotated(
    moments: Moments, R: torch.Tensor, *, dim: int, steps: int, betas: Sequence[float] = BETAS
) -> Moments:
    """Moments of R θ (along ``dim``) from those of θ; formulas above.

    Directions of unlike ages are mixed without their bias: m/(1 − β₁^age) and v/(1 − β₂^age) are what is turned, and
    the result is as old as the mean age of what it is made of, (R ∘ R) age over the rows' sums.

    Args:
        moments: of a parameter [r, n] (dim 0) or [n, r] (dim 1).
        R: [k, r].
        dim: which dimension holds the directions.
        steps: age of moments that have none.
        betas: decays, for directions of unlike ages.

    Returns:
        Moments of the parameter [k, n] or [n, k].
    """
    import torch

    turned = _along(dim)
    R = R.to(moments.first.dtype)
    squares = R * R
    if moments.age is None:
        return Moments(first=turned(R, moments.first), second=turned(squares, moments.second))
    ages = _by_direction(moments.age, R.shape[1], dim).to(R.dtype)
    shares = squares / squares.sum(1, keepdim=True).clamp_min(torch.finfo(R.dtype).tiny)
    new_ages = shares @ ages
    first, second = (
        turned(_scaled(matrix, ages, new_ages, beta), value)
        for matrix, value, beta in (
            (R, moments.first, betas[0]),
            (squares, moments.second, betas[1]),
        )
    )
    return Moments(first=first, second=second, age=new_ages.unsqueeze(1 - dim))


def lengthened(moments: Moments | None, shape: Sequence[int], *, dim: int, steps: int) -> Moments | None:
    """Moments of a parameter with more directions: those of the new ones are 0, and 0 steps old.

    Args:
        moments: of the parameter as it was; None where there were none.
        shape: of the parameter now.
        dim: which dimension holds the directions.
        steps: age of moments that have none.
    """
    if moments is None:
        return None
    kept = moments.first.shape[dim]
    first, second = moments.first.new_zeros(tuple(shape)), moments.second.new_zeros(tuple(shape))
    first.narrow(dim, 0, kept).copy_(moments.first)
    second.narrow(dim, 0, kept).copy_(moments.second)
    ages = first.new_zeros(shape[dim])
    ages[:kept] = float(steps) if moments.age is None else _by_direction(moments.age, kept, dim)
    return Moments(first=first, second=second, age=ages.unsqueeze(1 - dim))


def _by_direction(age: torch.Tensor, n: int, dim: int) -> torch.Tensor:
    """[n] from ages of any shape that broadcasts; all numbers of a direction are of one age."""
    return (age.select(1 - dim, 0) if age.dim() == 2 else age.reshape(-1)).expand(n)


def _along(dim: int):
    """Multiplication by a matrix along a dimension of a matrix."""
    if dim == 0:
        return lambda R, value: R @ value
    return lambda R, value: value @ R.t()


def _scaled(R: torch.Tensor, ages: torch.Tensor, new_ages: torch.Tensor, beta: float) -> torch.Tensor:
    """R with the bias of old directions taken off and that of new ones put on."""

    def bias(age: torch.Tensor) -> torch.Tensor:
        return 1 - beta**age

    old = bias(ages)
    # What is 0 steps old holds zeros, whatever they are divided by.
    return R * bias(new_ages)[:, None] / old.where(old > 0, old.new_ones(()))[None, :]
