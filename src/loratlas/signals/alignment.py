"""Alignment: how much more a matrix makes of the data than of noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch

from loratlas.signals.base import ALL_FOLDS, FoldSums, Key, Output, Signal, Use, experts_of
from loratlas.signals.column import Column

DRAWS = 64
"""Random directions that the baseline is averaged over."""


@final
class Alignment(Signal):
    """PLoP's normalised feature norm: the norm of what W makes of its input over what it makes of a random one.

        alignment = mean over tokens of ‖W x_t‖ / ‖W z_t‖,   z_t Gaussian, scaled to ‖z_t‖ = ‖x_t‖

    Tokens of padding are left out; a bias is none of W's doing and is taken off. A **low** value says that adaptation
    pays: W does not answer to these inputs yet.

    Unit: ratio. Adam's geometry: the published argument is about SignSGD on one layer, which Adam resembles; the number
    itself predicts no step.

    Cost: one forward pass, and `DRAWS` rows through each matrix once. Memory: two numbers per site and fold.

    Source: PLoP, Hayou, Ghosh, Yu (2025), arXiv:2506.20629, which takes the mean over the layers of a module type and
    adapts the types with the lowest means. Departure: since ‖W z_t‖ = ‖x_t‖ · ‖W u‖ with u uniform on the sphere, the
    mean of 1/‖W u‖ over `DRAWS` seeded directions stands for a new draw at every token; the expected value is the same.
    """

    name = "alignment"
    columns = (
        Column(
            name="alignment", unit="ratio to random inputs", pays="low", adam="argued for SignSGD; no step"
        ),
    )
    needs = "forward"

    def reset(self, model: Any) -> None:
        self.ratios = FoldSums()
        self._baseline: dict[Key, torch.Tensor] = {}

    def read(self, use: Use, output: Output) -> None:
        if use.key not in self._baseline:
            u = self.draw(f"{use.key[0]} {use.key[1]}", DRAWS, use.x.shape[1], use.x.float())
            u = u / torch.linalg.vector_norm(u, dim=1, keepdim=True)
            made = output.weight(u.to(use.x.dtype)).float()
            self._baseline[use.key] = (1 / torch.linalg.vector_norm(made, dim=1)).mean()
        y = output.y if output.bias is None else output.y - output.bias
        given = torch.linalg.vector_norm(use.x, dim=1, dtype=torch.float32)
        made = torch.linalg.vector_norm(y, dim=1, dtype=torch.float32)
        alive = given > 0
        ratio = (made[alive] / given[alive]).sum(dtype=torch.float64) * self._baseline[use.key].double()
        self.ratios.add(self.fold, use.key, torch.stack([ratio, alive.sum().double()]))

    def values(self, folds: Sequence[int] = ALL_FOLDS) -> dict[str, dict[str, float]]:
        by_site = {}
        for site in self.sites:
            parts = [
                t for e in experts_of(site) if (t := self.ratios.total((site.path, e), folds)) is not None
            ]
            if parts:
                total = torch.stack(parts).sum(0)
                if total[1] > 0:
                    by_site[site.path] = float(total[0] / total[1])
        return {"alignment": by_site}
