"""Beginnings: heads of the first layers that look at the tokens beside, and a decoder that finds its own token.

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


PULL = 5.0
"""Added to the logits of T5's heads at their offset: e⁵ times what any other place gets."""

MATCH = 0.3
"""Size of the maps of T5's cross-attention: the same token on both sides has a logit of MATCH² · 64 ≈ 6."""


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


@torch.no_grad()
def find_itself(masters: dict[str, torch.Tensor], config: Any) -> None:
    """Of T5: two heads of each stack look beside, and a token of the decoder finds itself in the encoder.

    A distance below half of a direction's buckets has a bucket of its own; what lies to the right begins in the middle
    of the encoder's table. In the decoder both heads look back. Cross-attention begins with Wq = Wk, each head on
    features of its own. The random weights below stay.

    Args:
        masters: name → float32 weights of a T5ForConditionalGeneration, untrained; changed in place.
        config: of it.
    """
    right = config.relative_attention_num_buckets // 2
    for stack, buckets in (("encoder", (1, right + 1)), ("decoder", (1, 2))):
        bias = masters[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        for head, bucket in enumerate(buckets):
            bias[bucket, head] += PULL
    for block in range(config.num_decoder_layers):
        for part in ("q", "k"):
            weight = masters[f"decoder.block.{block}.layer.1.EncDecAttention.{part}.weight"]
            weight += MATCH * torch.eye(*weight.shape)


def _turned(angles: torch.Tensor) -> torch.Tensor:
    """[n] angles → [2n, 2n], which turns (sin a, cos a) into (sin(a + angle), cos(a + angle)), pair by pair."""
    return torch.block_diag(
        *(torch.tensor([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]]) for a in angles.tolist())
    )
