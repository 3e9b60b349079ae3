"""Activation: how much of what a site reads, and of what it is told, lies in a few directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch

from loratlas.signals.base import ALL_FOLDS, FoldSums, Key, Output, Signal, Use, experts_of
from loratlas.signals.column import Column
from loratlas.signals.sketch import eigenvalues

RANK = 8


@final
class Activation(Signal):
    """Explained variance of a site's input and of its output gradient.

    Formulas, λ_j the falling eigenvalues of a covariance C with trace tr C:

        activation          = Σ_{j ≤ r} λ_j(C_x) / tr C_x    C_x = Σ_t (x_t − x̄)(x_t − x̄)ᵀ, over all tokens
        activation_gradient = Σ_{j ≤ r} λ_j(C_g) / tr C_g    C_g = Σ_t g_t g_tᵀ

    Unit: share, 0 to 1. Adam's geometry is not taken into account: neither predicts a step.

    Sites that read the same tensor (q, k and v; gate and up) have the same `activation`: it cannot tell them apart.

    Cost: one forward pass for the first column (one backward pass for the second) and 4·T·k·d operations for each
    tensor. Memory: k·d numbers per tensor and fold, k = 3r.

    Bias: eigenvalues from the sketch are a little too small, see `loratlas.signals.sketch.eigenvalues`.

    Source: EVA, Paischer et al. (2024), arXiv:2410.07170, whose ranks go where Σ_j λ_j / tr C is largest (`gains`).
    Departures: one pass and a sketch instead of an incremental decomposition; tr C is the whole variance, where an
    incremental decomposition of the first components must estimate it.
    """

    name = "activation"
    columns = (
        Column(name="activation", unit="share of the input's variance", pays="high", adam="none"),
        Column(name="activation_gradient", unit="share of the gradient's energy", pays="high", adam="none"),
    )
    needs = "backward"

    def __init__(self, *, seed: int = 0, rank: int = RANK) -> None:
        super().__init__(seed=seed)
        self.rank = rank

    def reset(self, model: Any) -> None:
        self.inputs, self.gradients = _Covariances(self, "input"), _Covariances(self, "gradient")
        self._groups = {site.path: site.input_group or site.path for site in self.sites}
        self._speaks: dict[str, str] = {}  # of the sites that read the same tensor, the first
        for site in self.sites:
            self._speaks.setdefault(self._groups[site.path], site.path)

    def read(self, use: Use, output: Output) -> None:
        group = self._groups[use.site.path]
        if self._speaks[group] == use.site.path:
            self.inputs.add(self.fold, (group, use.expert), use.x)

    def learn(self, use: Use, g: torch.Tensor) -> None:
        self.gradients.add(self.fold, use.key, g)

    def values(self, folds: Sequence[int] = ALL_FOLDS) -> dict[str, dict[str, float]]:
        columns: dict[str, dict[str, float]] = {column.name: {} for column in self.columns}
        for site in self.sites:
            shares = self._shares(site, folds)
            for name, share in shares.items():
                if share:
                    columns[name][site.path] = sum(share[: self.rank])
        return columns

    def gains(self, ranks: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
        """λ_j / tr C of each further direction; of the inputs it is EVA's order."""
        columns: dict[str, dict[str, list[float]]] = {column.name: {} for column in self.columns}
        for site in self.sites:
            for name, share in self._shares(site, ALL_FOLDS).items():
                columns[name][site.path] = (share + [0.0] * ranks)[: min(ranks, site.max_rank)]
        return columns

    def _shares(self, site: Any, folds: Sequence[int]) -> dict[str, list[float]]:
        """λ_j / tr C; of a stack the mean over its experts, weighted by their tokens."""
        keys = {
            "activation": (self.inputs, True, [(self._groups[site.path], e) for e in experts_of(site)]),
            "activation_gradient": (self.gradients, False, [(site.path, e) for e in experts_of(site)]),
        }
        by_site = {}
        for name, (kept, centred, parts) in keys.items():
            shares = [t for key in parts if (t := kept.shares(key, folds, centred=centred)) is not None]
            tokens = sum(n for n, _ in shares)
            size = max((len(share) for _, share in shares), default=0)
            by_site[name] = [
                sum(n * share[j] for n, share in shares if j < len(share)) / tokens for j in range(size)
            ]
        return by_site


class _Covariances:
    """Sketches of covariances: C Ω, the sum of the rows, their number and squares."""

    def __init__(self, owner: Activation, what: str) -> None:
        self.owner, self.what = owner, what
        self.Y, self.rows, self.about = FoldSums(), FoldSums(), FoldSums()
        self._random: dict[Key, torch.Tensor] = {}

    def add(self, fold: int, key: Key, x: torch.Tensor) -> None:
        if key not in self._random:
            k = min(3 * self.owner.rank, x.shape[1])
            self._random[key] = self.owner.draw_basis(f"{self.what} {key[0]} {key[1]}", x.shape[1], k, x)
        self.Y.add(fold, key, x.t() @ (x @ self._random[key]))
        self.rows.add(fold, key, x.sum(0, dtype=torch.float32))
        squares = torch.linalg.vector_norm(x, dtype=torch.float32).square()
        self.about.add(fold, key, torch.stack([squares, squares.new_tensor(float(len(x)))]))

    def shares(self, key: Key, folds: Sequence[int], *, centred: bool) -> tuple[float, list[float]] | None:
        """(rows, λ_j / tr C); None where nothing varies."""
        Y, rows, about = (sums.total(key, folds) for sums in (self.Y, self.rows, self.about))
        if Y is None or rows is None or about is None:
            return None
        Omega = self._random[key].double()
        total, n = about.double().tolist()
        Y, rows = Y.double(), rows.double()
        if centred:
            Y = Y - torch.outer(rows, rows @ Omega) / n
            total -= float(rows @ rows) / n
        if not total > 1e-12 * float(about[0]):
            return None
        return n, (eigenvalues(Y, Omega) / total).clamp(max=1.0).tolist()
