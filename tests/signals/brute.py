"""The plain way to what signals sketch: whole gradients, whole covariances, in float64 where it matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from loratlas.anatomy.read import read
from loratlas.data.batches.batching import Batch, collate
from loratlas.data.examples import Example
from loratlas.evaluation.token_losses import token_losses
from loratlas.placement.vocabulary import holds


def examples(n: int, *, vocabulary: int = 90, seed: int = 0, longest: int = 14) -> list[Example]:
    """``n`` examples of random tokens, the last half of each counted."""
    random = np.random.default_rng(seed)
    listed = []
    for row in range(n):
        length = int(random.integers(4, longest + 1))
        ids = random.integers(3, vocabulary, length).astype(np.int32)
        listed.append(Example(input_ids=ids, labelled=np.arange(length) >= length // 2, row=row))
    return listed


def batches(n: int = 16, *, size: int = 4, packed: bool = True, **options: Any) -> list[Batch]:
    """`examples` in batches."""
    rows = examples(n, **options)
    return [collate(rows[i : i + size], packed=packed) for i in range(0, n, size)]


def sites_of(model: Any) -> list[Any]:
    """The sites of `all`."""
    return [site for site in read(model.config).adaptable if holds("all", site.role)]


def gradients(model: Any, given: list[Batch], sites: list[Any]) -> dict[str, torch.Tensor]:
    """Path → the whole gradient of the mean loss per counted token, [d_out, d_in] or [E, d_out, d_in], float64."""
    named = dict(model.named_parameters())
    weights = {site.path: named[site.path] for site in sites}
    total = {path: torch.zeros_like(w, dtype=torch.float64) for path, w in weights.items()}
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        for batch in given:
            result = torch.autograd.grad(token_losses(model, batch).sum(), list(weights.values()))
            for path, gradient in zip(weights, result, strict=True):
                total[path] += gradient.double()
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
    counted = sum(batch.labelled for batch in given)
    return {
        site.path: (total[site.path].mT if "transposed" in site.flags else total[site.path]) / counted
        for site in sites
    }


def by_gradient(G: torch.Tensor, rank: int) -> tuple[float, float]:
    """(Σ σ_j ‖u_j‖₁, Σ σ_j²) over the first ``rank`` of one matrix or a stack of them."""
    adam = energy = 0.0
    for matrix in G if G.dim() == 3 else [G]:
        U, sigma, _ = torch.linalg.svd(matrix, full_matrices=False)
        adam += float((sigma * U.abs().sum(0))[:rank].sum())
        energy += float(sigma.square()[:rank].sum())
    return adam, energy
