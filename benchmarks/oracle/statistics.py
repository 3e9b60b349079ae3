"""What the published rules look at, measured on calibration rows of the training file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from loratlas.anatomy.sites import Site
from loratlas.data.batches.batch import Batch
from loratlas.signals.base import Signal

BATCHES, ROWS = 8, 8
"""Calibration batches (FIM-LoRA's eight) and rows of each."""

PROJECTED = 4
"""Rank of the A that gradients are projected with."""

BRIEF = 20
"""Steps of the training that LoRA-drop looks at."""


def calibration(rows: Any, *, seed: int, packed: bool) -> list[Batch]:
    """The first `BATCHES` batches of the order that a run with this seed has."""
    from loratlas.data.batches.batching import collate, training_order

    order = training_order(len(rows), steps=BATCHES, batch_size=ROWS, seed=seed)
    return [
        collate([rows.examples[i] for i in chosen], packed=packed, pad_id=rows.pad_id, rows=chosen.tolist())
        for chosen in order
    ]


def gradients(
    model: Any, sites: Sequence[Site], batches: Sequence[Batch], *, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Statistics of the weights' own gradients of the mean loss.

    Args:
        model: the bare base. sites: where. batches: calibration rows. seed: draws A.

    Returns:
        ``importance`` mean|W ⊙ Ḡ|, ``norm`` ‖Ḡ‖_F, ``page`` ‖Ḡ Aᵀ‖²_F, ``fisher`` the mean over batches and entries of
        (G Aᵀ)²; each path → value. Ḡ is the mean over batches. A [4, d_in] is uniform within ±1/√d_in, as LoRA begins.
    """
    import torch

    from loratlas.evaluation.token_losses import token_losses

    model.eval()
    weights = {site.path: model.get_parameter(site.path) for site in sites}
    turned = {site.path: "transposed" in site.flags for site in sites}
    random = torch.Generator().manual_seed(seed)
    A = {
        site.path: (2 * torch.rand(PROJECTED, site.shape[1], generator=random) - 1) / math.sqrt(site.shape[1])
        for site in sites
    }
    total = {path: torch.zeros_like(weight, dtype=torch.float32) for path, weight in weights.items()}
    fisher = dict.fromkeys(weights, 0.0)
    with _requiring(weights.values()):
        for batch in batches:
            batch = batch.to(next(iter(weights.values())).device)
            (token_losses(model, batch).sum() / batch.labelled).backward()
            for path, weight in weights.items():
                gradient = weight.grad.float()
                weight.grad = None
                total[path] += gradient / len(batches)
                linear = gradient.t() if turned[path] else gradient
                fisher[path] += float((linear @ A[path].to(linear).t()).square().mean()) / len(batches)
    by_name: dict[str, dict[str, float]] = {"importance": {}, "norm": {}, "page": {}, "fisher": fisher}
    for path, mean in total.items():
        linear = mean.t() if turned[path] else mean
        by_name["importance"][path] = float((weights[path].float() * mean).abs().mean())
        by_name["norm"][path] = float(mean.norm())
        by_name["page"][path] = float((linear @ A[path].to(linear).t()).square().sum())
    return by_name


def stable_ranks(model: Any, sites: Sequence[Site]) -> dict[str, float]:
    """‖W‖²_F / ‖W‖²_2 of every matrix."""
    import torch

    by_name = {}
    for site in sites:
        weight = model.get_parameter(site.path).detach().float()
        by_name[site.path] = float(weight.square().sum() / torch.linalg.matrix_norm(weight, ord=2).square())
    return by_name


def outputs(tuned: Any, sites: Sequence[Site], batches: Sequence[Batch]) -> dict[str, float]:
    """Mean of ‖ΔW x‖² over tokens, by path.

    Args:
        tuned: a `PeftModel` whose adapters were trained. sites: that carry one. batches: calibration rows.
    """
    import torch

    from loratlas.adapters.peft_targets import adapted
    from loratlas.evaluation.token_losses import token_losses

    layers, sums, handles = adapted(tuned), dict.fromkeys((site.path for site in sites), 0.0), []
    for site in sites:
        layer = layers.get(site.path) or layers[site.module]
        (name,) = layer.lora_B

        def watch(_: Any, __: Any, y: Any, path: str = site.path, scale: float = layer.scaling[name]) -> None:
            sums[path] += float((scale * y.float()).square().sum())

        handles.append(layer.lora_B[name].register_forward_hook(watch))
    tuned.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                token_losses(tuned, batch.to(tuned.get_input_embeddings().weight.device))
    finally:
        for handle in handles:
            handle.remove()
    tokens = sum(batch.tokens for batch in batches)
    return {path: value / tokens for path, value in sums.items()}


def eva_start(tuned: Any, sites: Sequence[Site], directions: Mapping[str, Any]) -> None:
    """Begin as EVA does: rows of A along the first directions of each matrix's input, B = 0.

    Args:
        tuned: a `PeftModel` that was not trained yet. sites: that carry an adapter.
        directions: path → orthonormal rows [≥ rank, d_in], the largest variance first.
    """
    import torch

    from loratlas.adapters.peft_targets import adapted

    layers = adapted(tuned)
    for site in sites:
        layer = layers.get(site.path) or layers[site.module]
        (name,) = layer.lora_A
        factor = layer.lora_A[name].weight
        with torch.no_grad():
            factor.copy_(directions[site.path][: factor.shape[0]].to(factor))
            layer.lora_B[name].weight.zero_()


class InputDirections(Signal):
    """The exact principal directions of every matrix's input, for small bases: Σ x xᵀ, its eigenvectors and -values.

    Unit: share of the input's energy. Cost: a matrix [d_in, d_in] per group of sites that read the same input.
    Source: EVA (arXiv:2410.07170), which sketches the same incrementally. Adam's geometry is not taken into account.
    """

    name = "input_directions"
    columns = ()
    needs = "forward"

    def reset(self, model: Any) -> None:
        self._sums: dict[str, Any] = {}

    def read(self, use: Any, output: Any) -> None:
        x = use.x.detach().float()
        before = self._sums.get(use.site.path)
        self._sums[use.site.path] = x.t() @ x if before is None else before + x.t() @ x

    def values(self, folds: Sequence[int] = ()) -> dict[str, dict[str, float]]:
        return {}

    def solved(self, most: int) -> dict[str, tuple[list[float], Any]]:
        """Path → (shares of the input's energy, directions [most, d_in]), the largest first."""
        import torch

        by_name = {}
        for path, total in self._sums.items():
            energies, vectors = torch.linalg.eigh(total)
            energies, vectors = energies.flip(0).clamp(min=0), vectors.flip(1)
            by_name[path] = ((energies[:most] / energies.sum()).tolist(), vectors[:, :most].t().contiguous())
        return by_name


@contextmanager
def _requiring(weights: Any) -> Iterator[None]:
    """Within this context these weights, and no others, require a gradient."""
    chosen = list(weights)
    before = [weight.requires_grad for weight in chosen]
    for weight in chosen:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight, required in zip(chosen, before, strict=True):
            weight.requires_grad_(required)
            weight.grad = None
