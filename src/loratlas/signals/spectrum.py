"""Spectrum: what the weights alone say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module
from typing import Any, final

import torch

from loratlas.anatomy.sites import Site
from loratlas.errors import ModelError
from loratlas.signals.base import ALL_FOLDS, Signal
from loratlas.signals.column import Column


@final
class Spectrum(Signal):
    """Condition number and stable rank of a weight, from its singular values σ_1 ≥ … ≥ σ_m.

        spectrum    = log₁₀ (σ_1 / σ_m)
        stable_rank = Σ_j σ_j² / σ_1²

    A **low** condition number says that an adapter helps, by KappaTune's argument: a matrix that treats directions
    alike holds little that could be forgotten. A high stable rank says much the same. Of a stack of experts, the mean.

    Unit: decades; directions. Adam's geometry is not taken into account, nor are the data.

    Cost: no pass; one singular value decomposition per matrix, in float32. Memory: one matrix at a time.

    Source: KappaTune, Ludwig (2025), arXiv:2506.16289, which trains the tensors with the lowest condition numbers;
    stable rank: Rudelson, Vershynin (2007), arXiv:math/0503442. Departure: the logarithm, for the order is the same and
    the mean over experts has a meaning.
    """

    name = "spectrum"
    columns = (
        Column(name="spectrum", unit="decades of condition", pays="low", adam="none"),
        Column(name="stable_rank", unit="directions", pays="high", adam="none"),
    )
    needs = "weights"

    def reset(self, model: Any) -> None:
        self._measured: dict[str, tuple[float, float]] = {}

    def weigh(self, model: Any, site: Site) -> None:
        stack = [W.detach().float() for W in _weights(model, site)]
        if not all(bool(torch.isfinite(W).all()) for W in stack):
            raise ModelError(
                given=f"the weights of {model.name_or_path or type(model).__name__}",
                found=f"NaN or infinite numbers, first at {site.module}",
                instead="the weights as they were before they broke",
            )
        values = [torch.linalg.svdvals(W) for W in stack]
        ends = [(float(s[0]), float(s[-1]), float(s.square().sum())) for s in values if float(s[0]) > 0]
        if ends:
            decades = [math.log10(high / max(low, 1e-12 * high)) for high, low, _ in ends]
            ranks = [energy / high**2 for high, _, energy in ends]
            self._measured[site.path] = (sum(decades) / len(ends), sum(ranks) / len(ends))

    def values(self, folds: Sequence[int] = ALL_FOLDS) -> dict[str, dict[str, float]]:
        return {
            "spectrum": {path: decades for path, (decades, _) in self._measured.items()},
            "stable_rank": {path: rank for path, (_, rank) in self._measured.items()},
        }


def _weights(model: Any, site: Site) -> Sequence[torch.Tensor]:
    """The matrices of a site, dequantised where they are stored in few bits."""
    parameter = model.get_parameter(site.path)
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        parameter = import_module("bitsandbytes.functional").dequantize_4bit(parameter.data, state)
    return list(parameter) if site.kind == "experts" else [parameter]
