"""A beginning for masked LM: heads of the first layers that look at the tokens beside.

Whoever has to tell a hidden token must first look at its neighbours, and nothing but the few hidden tokens say so. From
random weights a small encoder spends thousands of steps on learning no more than how frequent words are. Trained models
turn out to have heads that look some places to the left or right; this begins with some, and training does with them
what it likes. It is mimetic initialisation (Trockman & Kolter 2023, arXiv:2305.09828) in spirit; theirs begins with
WqWkᵀ ≈ I instead.
"""

from __future__ import annotations

import math
from typing import Any

import torch

OFFSETS = ((-1, 1, -2, 2), (-1, 1, -3, 3))
"""Places to look at, by layer and head."""

FASTEST, SLOWEST = 3.0, 0.01
"""Radians a place, of the first and the last wave."""

STRENGTH = 1.25
"""Size of the maps that make queries and keys of positions: a third of a head's attention lies on its offset then."""


@torch.no_grad()
def look_around(model: Any) -> None:
    """Waves for positions, and heads that shift them.

    The table of positions becomes sines and cosines (Vaswani et al. 2017), for which a shift by δ places turns every
    pair (sin, cos) by δ·ω. A head keeps the fastest pairs as they are for keys and turns them for queries, so that the
    product Σ cos(ω(i + δ − j)) is largest where j is δ places away. The random weights below stay.

    Args:
        model: BertForMaskedLM, untrained.
    """
    bert, spread = model.bert, model.config.initializer_range
    table = bert.embeddings.position_embeddings.weight
    places, width = table.shape
    waves = FASTEST * (SLOWEST / FASTEST) ** (torch.arange(width // 2) / (width // 2 - 1))
    angles = torch.arange(places)[:, None] * waves
    table.copy_(torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1) * math.sqrt(2) * spread)
    heads = model.config.num_attention_heads
    size = width // heads
    for layer, offsets in zip(bert.encoder.layer, OFFSETS, strict=False):
        for head, offset in zip(range(heads), offsets, strict=False):
            rows = slice(head * size, (head + 1) * size)
            layer.attention.self.key.weight[rows, :size] += STRENGTH * torch.eye(size)
            layer.attention.self.query.weight[rows, :size] += STRENGTH * _turned(waves[: size // 2] * offset)


def _turned(angles: torch.Tensor) -> torch.Tensor:
    """[n] angles → [2n, 2n], which turns (sin a, cos a) into (sin(a + angle), cos(a + angle)), pair by pair."""
    return torch.block_diag(
        *(torch.tensor([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]]) for a in angles.tolist())
    )
