"""Causal attention inside each example of a packed batch.

Registered with transformers as ``loratlas_packed``. Segments of similar length are gathered into a few padded blocks;
padding stands right of the tokens, so that the causal mask alone keeps tokens from seeing it. No T × T mask is made.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

NAME = "loratlas_packed"
SLACK = 0.8
"""A segment joins a block when it is at least this share of the block's longest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Segments side by side: ``b`` segments of at most ``length`` tokens."""

    segments: int
    length: int
    gather: torch.Tensor  # int64 [b * length]: place of each token in the pack; padding repeats a token


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the segments of a pack lie, and the way back."""

    blocks: tuple[Block, ...]
    scatter: torch.Tensor  # int64 [T]: place of each token among all blocks laid end to end
    longest: int
    tokens: int

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device) -> Layout:
        """Group segments into blocks, longest first."""
        lens = np.asarray(lengths)
        starts = np.concatenate([[0], np.cumsum(lens)[:-1]])
        order = np.argsort(-lens, kind="stable")
        scatter = np.empty(int(lens.sum()), dtype=np.int64)
        blocks, first, base = [], 0, 0
        while first < len(order):
            longest = int(lens[order[first]])
            last = first
            while last < len(order) and lens[order[last]] >= SLACK * longest:
                last += 1
            members = order[first:last]
            column = np.arange(longest)
            inside = np.minimum(column[None, :], lens[members][:, None] - 1)
            gather = starts[members][:, None] + inside
            real = column[None, :] < lens[members][:, None]
            scatter[gather[real]] = base + np.flatnonzero(real.reshape(-1))
            blocks.append(
                Block(
                    segments=len(members),
                    length=longest,
                    gather=torch.from_numpy(gather.reshape(-1)).to(device),
                )
            )
            base += gather.size
            first = last
        return Layout(
            blocks=tuple(blocks),
            scatter=torch.from_numpy(scatter).to(device),
            longest=int(lens.max()),
            tokens=len(scatter),
        )


class _Active(threading.local):
    """What the attention function reads: the layout of the batch under way, and the windows it has met."""

    windows: set[int] | None = None
    state: tuple[Layout, Sequence[Any]] | None = None


_ACTIVE = _Active()


@contextmanager
def use_layout(layout: Layout, configs: Sequence[Any]) -> Iterator[None]:
    """Switch the given configs to packed attention over this layout, and back afterwards."""
    before, names = _ACTIVE.state, [config._attn_implementation_internal for config in configs]
    _ACTIVE.state = (layout, configs)
    for config in configs:
        config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        _ACTIVE.state = before
        for config, name in zip(configs, names, strict=True):
            config._attn_implementation_internal = name


@contextmanager
def windows_seen() -> Iterator[set[int]]:
    """Collects the sliding windows that models hand to the attention function."""
    _ACTIVE.windows = windows = set()
    try:
        yield windows
    finally:
        _ACTIVE.windows = None


def carrying(checkpoint: Any) -> Any:
    """A checkpoint function whose recomputed layers see the layout that they saw the first time.

    Layers under gradient checkpointing run again in the backward pass, when the batch's context has been left and
    another batch may even have passed; on a GPU they do so in another thread.
    """
    if getattr(checkpoint, "carries_layout", False):
        return checkpoint

    def run(function: Any, *arguments: Any) -> Any:
        state = _ACTIVE.state
        if state is None:
            return checkpoint(function, *arguments)

        def inside(*inner: Any) -> Any:
            with use_layout(*state):
                return function(*inner)

        return checkpoint(inside, *arguments)

    run.carries_layout = True  # type: ignore[attr-defined]
    return run


def register() -> None:
    """Make the function known to transformers (again and again is fine)."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of the pack: query [1, H, T, D], key and value [1, H_kv, T, D]; returns [1, T, H, D_v]."""
    layout = _ACTIVE.state[0] if _ACTIVE.state else None
    if layout is None or query.shape[2] != layout.tokens or key.shape[2] != layout.tokens:
        raise RuntimeError("packed attention was called outside of its batch")
    for name in ("s_aux", "position_bias", "cache"):
        if kwargs.get(name) is not None:
            raise RuntimeError(f"packed attention does not know {name}")
    if kwargs.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise RuntimeError("packed attention is causal")
    if _ACTIVE.windows is not None and sliding_window is not None:
        _ACTIVE.windows.add(sliding_window)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    outs = []
    for block in layout.blocks:
        qb, kb, vb = (
            x.index_select(0, block.gather).unflatten(0, (block.segments, block.length)).transpose(1, 2)
            for x in (q, k, v)
        )
        out = _block_attention(qb, kb, vb, scaling, sliding_window, softcap, dropout)
        outs.append(out.transpose(1, 2).flatten(0, 1))
    joined = torch.cat(outs) if len(outs) > 1 else outs[0]
    return joined.index_select(0, layout.scatter).unsqueeze(0), None


def _block_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> torch.Tensor:
    """Causal attention, q [b, H, L, D] over k, v [b, H_kv, L, D]; a window counts the token itself."""
    groups, length = q.shape[1] // k.shape[1], q.shape[2]
    windowed = window is not None and window < length
    if softcap is None and not windowed:
        return F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=groups > 1
        )
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    place = torch.arange(length, device=q.device)
    seen = place[None, :] <= place[:, None]
    if windowed:
        seen &= place[None, :] > place[:, None] - window
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout, scale=scaling)
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1, dtype=torch.float32).to(q.dtype)
    return F.dropout(weights, dropout) @ v
