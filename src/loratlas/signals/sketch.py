"""Small matrices that remember large ones: one-pass sketches of a product and of a covariance.

Everything here is float64 on what was summed in float32; the matrices have a few columns.
"""

from __future__ import annotations

import torch


def singular(
    Y: torch.Tensor, W: torch.Tensor, Psi: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The largest singular triplets of G [m, n] from two products with random matrices, each formed in one pass.

        Q = orth(Y), X = (Ψ Q)⁺ W, G ≈ Q X

    Args:
        Y: G Ω, [m, k]; Ω random [n, k].
        W: Ψ G, [l, n]; Ψ random [l, m], l > k (or l = m).
        Psi: Ψ.

    Returns:
        U [m, k], σ [k] falling, Vᵀ [k, n].

    Source: Tropp, Yurtsever, Udell, Cevher (2017), Practical sketching algorithms for low-rank matrix approximation,
    arXiv:1609.00048, algorithm 4. E‖G − Q X‖² ≤ (1 + k/(l − k − 1)) · min over ρ < k − 1 of (1 + ρ/(k − ρ − 1)) τ²,
    with τ² the energy beyond the first ρ singular values. Large singular values come out nearly right, and on average
    a little too large, because a part of the tail is folded into them.
    """
    Y, W, Psi = Y.double(), W.double(), Psi.double()
    Q, _ = torch.linalg.qr(Y)
    X = torch.linalg.lstsq(Psi @ Q, W, driver="gelsd").solution if Y.device.type == "cpu" else (
        torch.linalg.pinv(Psi @ Q) @ W
    )  # fmt: skip
    U, sigma, Vt = torch.linalg.svd(X, full_matrices=False)
    return Q @ U, sigma, Vt


def eigenvalues(Y: torch.Tensor, Omega: torch.Tensor) -> torch.Tensor:
    """The largest eigenvalues of a covariance C [n, n] from C Ω, falling and never negative.

    Nyström's approximation C ≈ Y (Ωᵀ Y)⁺ Yᵀ, stabilised by a shift that is taken off again. It never exceeds C, so that
    eigenvalues come out a little too small.

    Args:
        Y: C Ω, [n, k].
        Omega: an orthonormal basis of a random subspace, [n, k].

    Returns:
        [k].

    Source: Tropp, Yurtsever, Udell, Cevher (2017), Fixed-rank approximation of a positive-semidefinite matrix from
    streaming data, arXiv:1706.05736, algorithm 3.
    """
    E, shift = _nystroem(Y, Omega)
    squares = torch.linalg.svdvals(E).square() - shift
    padded = E.new_zeros(Y.shape[1])
    padded[: len(squares)] = squares.clamp(min=0)
    return padded


def eigenvectors(Y: torch.Tensor, Omega: torch.Tensor) -> torch.Tensor:
    """The leading eigenvectors of a covariance C [n, n] from C Ω, by the approximation of `eigenvalues`.

    Args:
        Y, Omega: as of `eigenvalues`.

    Returns:
        [n, ≤ k], orthonormal columns, the largest eigenvalue's first; no column for an eigenvalue that is none.
    """
    E, shift = _nystroem(Y, Omega)
    if not E.shape[1]:
        return E
    U, sigma, _ = torch.linalg.svd(E, full_matrices=False)
    return U[:, sigma.square() > 10 * shift]


def _nystroem(Y: torch.Tensor, Omega: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(E [n, ≤ k] with C + shift ≈ E Eᵀ, shift)."""
    Y, Omega = Y.double(), Omega.double()
    norm = torch.linalg.matrix_norm(Y)
    if not bool(norm > 0):
        return Y[:, :0], norm
    shift = 1e-9 * norm  # far above float64's rounding, far below what float32 sums can tell
    Y = Y + shift * Omega
    core = Omega.t() @ Y
    root, failed = torch.linalg.cholesky_ex((core + core.t()) / 2)
    if bool(failed):
        # Sums in float32 can leave an eigenvalue just below 0.
        values, vectors = torch.linalg.eigh((core + core.t()) / 2)
        kept = values > 1e-9 * values[-1]
        E = (Y @ vectors[:, kept]) / values[kept].sqrt()
    else:
        E = torch.linalg.solve_triangular(root, Y.t(), upper=False).t()
    return E, shift
