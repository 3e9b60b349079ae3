"""Gradient: how much the loss could fall if a site had rank r."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch

from loratlas.anatomy.sites import Site
from loratlas.signals.base import ALL_FOLDS, FoldSums, Key, Signal, Use, experts_of
from loratlas.signals.column import Column
from loratlas.signals.sketch import singular

RANK = 4
"""Singular values that a score adds up."""


@final
class Gradient(Signal):
    """The leading part of a weight's gradient G = Σ_t g_t x_tᵀ / (counted tokens), which is never formed.

    Formulas, σ_j and u_j being the j-th singular value and left vector of G:

        gradient        = Σ_{j ≤ r} σ_j ‖u_j‖₁     fall of the loss in the first step of Adam
        gradient_energy = Σ_{j ≤ r} σ_j²           fall of the loss in the first step of gradient descent

    Both speak of an adapter whose A reads the first r right vectors, and of a first step of size 1 on B = 0. Adam's
    first step has the same size for every entry, η sign(∂L/∂B), so that the loss falls by η ‖∂L/∂B‖₁ with
    ∂L/∂B = G Aᵀ = (σ_1 u_1 … σ_r u_r). `gradient` takes Adam's geometry into account, `gradient_energy` does not.

    With ``fisher``, a third number: the mean over examples of ‖G_e‖², G_e the gradient of one example's summed loss;
    the trace of the empirical Fisher information of the site. It says how large gradients are, not whether they agree.

    Unit: nats per counted token, per unit of step size (of squared step for the Fisher).

    Cost: beside one forward and one backward pass, 2·T·(k·(d_in + d_out) + l·(d_in + d_out)) operations for T tokens,
    k = 2r, l = 3k. Memory: (k·d_out + l·d_in) numbers per site and fold, and the site's input until the backward
    pass comes by, where it cannot be made again (`loratlas.signals.rematerialize`). No tensor of the weight's
    size exists.

    Bias and variance: see `loratlas.signals.sketch.singular`. Measured at r = 4 on 21 matrices of a trained base of 8
    million parameters and 32 rows of instructions: energy +2 % (median; standard deviation 7 %), `gradient` +4 % (8 %);
    on flat spectra of random models up to +14 % (19 %). The gradient itself is that of a sample of rows: its noise adds
    to all singular values, which the jackknife shows in part.

    Source: range finder of Halko, Martinsson, Tropp (2011), arXiv:0909.4061, in the one-pass form of Tropp et al.
    (2017), arXiv:1609.00048. The energy is what LoRA-GA, arXiv:2407.05000, initialises from. Departure: LoRA-GA holds
    every full gradient and looks at initial directions; this looks at where they are worth most.
    """

    name = "gradient"
    columns = (
        Column(
            name="gradient",
            unit="nats per token per unit step of Adam",
            pays="high",
            adam="the first step of Adam on B",
        ),
        Column(
            name="gradient_energy",
            unit="nats per token per unit step of gradient descent",
            pays="high",
            adam="none: gradient descent",
        ),
    )
    needs = "backward"

    def __init__(self, *, seed: int = 0, rank: int = RANK, fisher: bool = False) -> None:
        super().__init__(seed=seed)
        self.rank, self.fisher = rank, fisher
        if fisher:
            column = Column(
                name="fisher",
                unit="squared nats per example",
                pays="high",
                adam="none: its square root is what Adam divides by, summed over entries",
            )
            self.columns = (*type(self).columns, column)

    def reset(self, model: Any) -> None:
        self.Y, self.W, self.squares = FoldSums(), FoldSums(), FoldSums()
        self._random: dict[tuple[Key, str], torch.Tensor] = {}

    def sizes(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(k, l): columns of Ω and rows of Ψ for a matrix of this shape."""
        d_out, d_in = shape
        k = min(2 * self.rank, d_out, d_in)
        return k, min(3 * k, d_out)

    def learn(self, use: Use, g: torch.Tensor) -> None:
        Omega, Psi = self._pair(use.key, (g.shape[1], use.x.shape[1]), g)
        x = use.x.to(g.dtype)
        self.Y.add(self.fold, use.key, g.t() @ (x @ Omega))
        self.W.add(self.fold, use.key, (g @ Psi.t()).t() @ x)
        if self.fisher and use.owner is not None:
            self.squares.add(self.fold, use.key, _squares(x, g, use.owner))

    def prepare(self, key: Key, shape: tuple[int, int], like: torch.Tensor) -> None:
        """Draw a matrix's random matrices, as its first use would with gradients like this tensor."""
        self._pair(key, shape, like)

    def _pair(
        self, key: Key, shape: tuple[int, int], like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        k, rows = self.sizes(shape)
        if (key, "right") not in self._random:
            name = f"{key[0]} {key[1]}"
            self._random[key, "right"] = self.draw_basis(f"right {name}", shape[1], k, like)
            self._random[key, "left"] = self.draw_basis(f"left {name}", shape[0], rows, like).t()
        return self._random[key, "right"], self._random[key, "left"]

    def spectrum(
        self, key: Key, folds: Sequence[int] = ALL_FOLDS
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(U [d_out, k], σ [k]) of the mean gradient of one matrix; None where none came by."""
        Y, W = self.Y.total(key, folds), self.W.total(key, folds)
        tokens = self.labelled(folds)
        if Y is None or W is None or not tokens:
            return None
        U, sigma, _ = singular(Y / tokens, W / tokens, self._random[key, "left"])
        return U, sigma

    def inputs(self, key: Key) -> torch.Tensor | None:
        """[k, d_in]: leading right singular vectors of the mean gradient, which an adapter's A would read by."""
        Y, W = self.Y.total(key, ALL_FOLDS), self.W.total(key, ALL_FOLDS)
        return None if Y is None or W is None else singular(Y, W, self._random[key, "left"])[2]

    def values(self, folds: Sequence[int] = ALL_FOLDS) -> dict[str, dict[str, float]]:
        columns: dict[str, dict[str, float]] = {column.name: {} for column in self.columns}
        for site in self.sites:
            parts = [s for e in experts_of(site) if (s := self.spectrum((site.path, e), folds)) is not None]
            if not parts:
                continue
            first = slice(self.rank)
            columns["gradient"][site.path] = sum(
                float((sigma * U.abs().sum(0))[first].sum()) for U, sigma in parts
            )
            columns["gradient_energy"][site.path] = sum(
                float(sigma.square()[first].sum()) for _, sigma in parts
            )
            if self.fisher:
                squares = [self.squares.total((site.path, e), folds) for e in experts_of(site)]
                total = torch.stack([s for s in squares if s is not None]).sum(0) if any(
                    s is not None for s in squares
                ) else None  # fmt: skip
                if total is not None:
                    columns["fisher"][site.path] = float(total[0] / total[1])
        return columns

    def gains(self, ranks: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
        """What each further rank adds; beyond the k ranks of the sketch, the energy that is left, spread evenly."""
        columns: dict[str, dict[str, list[float]]] = {"gradient": {}, "gradient_energy": {}}
        for site in self.sites:
            size = min(ranks, site.max_rank)
            total = torch.zeros(2, size, dtype=torch.float64)
            for expert in experts_of(site):
                part = self.spectrum((site.path, expert))
                if part is not None:
                    U, sigma = part
                    sketched = torch.stack([sigma * U.abs().sum(0), sigma.square()]).cpu()[:, :size]
                    total[:, : sketched.shape[1]] += sketched
                    total[:, sketched.shape[1] :] += self._beyond((site.path, expert), sigma, site)
            for name, gains in zip(columns, total.tolist(), strict=True):
                columns[name][site.path] = gains
        return columns

    def _beyond(self, key: Key, sigma: torch.Tensor, site: Site) -> torch.Tensor:
        """(σ‖u‖₁, σ²) [2, 1] of one direction that the sketch does not reach: an equal share of the energy left."""
        Y = self.Y.total(key, ALL_FOLDS)
        left = site.max_rank - len(sigma)
        if Y is None or left <= 0:
            return torch.zeros(2, 1, dtype=torch.float64)
        # A random subspace of k out of d_in directions holds k/d_in of the energy, on average.
        whole = float((Y.double() / self.labelled(ALL_FOLDS)).square().sum()) * site.shape[1] / Y.shape[1]
        # No later direction has more than an earlier one; ‖u‖₁ of a random unit vector is √(2 d/π).
        energy = min(max(whole - float(sigma.square().sum()), 0.0) / left, float(sigma[-1]) ** 2)
        fall = math.sqrt(energy) * math.sqrt(2 * Y.shape[0] / math.pi)
        return torch.tensor([[fall], [energy]], dtype=torch.float64)


def _squares(x: torch.Tensor, g: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """(Σ_e ‖G_e‖², number of examples), G_e = Σ_{t of e} g_t x_tᵀ, by ‖G_e‖² = Σ_{t, s of e} (x_t·x_s)(g_t·g_s)."""
    total = x.new_zeros((), dtype=torch.float64)
    examples = owner.unique()
    for example in examples[examples >= 0]:
        rows = owner == example
        one, two = x[rows].float(), g[rows].float()
        total += ((one @ one.t()) * (two @ two.t())).sum(dtype=torch.float64)
    return torch.stack([total, total.new_tensor(float((examples >= 0).sum()))])
