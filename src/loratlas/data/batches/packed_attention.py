"""Causal attention inside each example of a packed batch.

Registered with transformers as ``loratlas_packed``. Segments of similar length are gathered into a few padded
blocks; padding stands right of the tokens, so that the causal mask alone keeps tokens from seeing it. No T ×
T mask is made, and everything else in the model works on the pack without padding.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from loratlas.data.batches.block_attention import attend, attend_short, is_short
from loratlas.modeling import patched_configs

NAME = "loratlas_packed"

SLACK = 0.75
"""A segment joins a block when it is at least this share of the block's longest."""

BLOCK_PAIRS = 2**16
"""Pairs of tokens (segments × length²) per block; more would leave the processor's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentBlock:
    """Segments side by side.

    Args:
        segments: how many.
        length: tokens of the longest.
    """

    segments: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the segments of a pack lie, and the way back.

    Args:
        blocks: the segments, longest first.
        gather: int64 [N]; index in the pack of each token of all blocks laid end to end. Padding repeats the
            segment's last token.
        padding: int64; which of those N are padding.
        scatter: int64 [T]; index of each token of the pack among those N.
    """

    blocks: tuple[SegmentBlock, ...]
    gather: torch.Tensor
    padding: torch.Tensor
    scatter: torch.Tensor

    @property
    def tokens(self) -> int:
        """Tokens of the pack."""
        return len(self.scatter)

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device | str = "cpu") -> Layout:
        """Group segments of the given lengths (in pack order) into blocks.

        >>> [(block.segments, block.length) for block in Layout.of([3, 10, 9, 1]).blocks]
        [(2, 10), (1, 3), (1, 1)]
        """
        lens = np.asarray(lengths)
        starts = np.cumsum(lens) - lens
        order = np.argsort(-lens, kind="stable")
        scatter = np.empty(int(lens.sum()), dtype=np.int64)
        blocks, gathers, paddings = list[SegmentBlock](), list[np.ndarray](), list[np.ndarray]()
        first = base = 0
        while first < len(order):
            longest = int(lens[order[first]])
            most = first + max(1, BLOCK_PAIRS // longest**2)
            last = first
            while last < min(len(order), most) and lens[order[last]] >= SLACK * longest:
                last += 1
            members, column = order[first:last], np.arange(longest)
            padding = column >= lens[members][:, None]
            gather = starts[members][:, None] + np.minimum(column, lens[members][:, None] - 1)
            scatter[gather[~padding]] = base + np.flatnonzero(~padding)
            blocks.append(SegmentBlock(segments=len(members), length=longest))
            gathers.append(gather.reshape(-1))
            paddings.append(base + np.flatnonzero(padding))
            base += gather.size
            first = last
        indices = (np.concatenate(gathers), np.concatenate(paddings), scatter)
        gather, padding, scatter = (torch.from_numpy(x).to(device) for x in indices)
        return Layout(blocks=tuple(blocks), gather=gather, padding=padding, scatter=scatter)


class _ToBlocks(torch.autograd.Function):
    """Pack [T, …] → all blocks end to end [N, …].

    Padding takes part in nothing (no token sees it, and nobody reads what it sees), so that its gradient is 0 and
    the way back is a selection, where the general rule would add into zeros.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layout: Layout) -> torch.Tensor:
        ctx.layout = layout
        return x.index_select(0, layout.gather)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return g.index_select(0, ctx.layout.scatter), None


class _FromBlocks(torch.autograd.Function):
    """All blocks end to end [N, …] → pack [T, …]."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layout: Layout) -> torch.Tensor:
        ctx.layout = layout
        return x.index_select(0, layout.scatter)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return g.index_select(0, ctx.layout.gather).index_fill_(0, ctx.layout.padding, 0), None


class _Active(threading.local):
    """What the attention function reads: the batch under way, and the windows it has met."""

    state: tuple[Layout, Sequence[Any]] | None = None
    windows: set[int] | None = None


_ACTIVE = _Active()


@contextmanager
def switched(configs: Sequence[Any], name: str) -> Iterator[None]:
    """Let the live models of these configs use another attention implementation, and put their own back."""
    with patched_configs(configs, {"_attn_implementation_internal": name}):
        yield


@contextmanager
def use_layout(layout: Layout, configs: Sequence[Any]) -> Iterator[None]:
    """Switch the given configs to packed attention over this layout, and back afterwards."""
    before = _ACTIVE.state
    _ACTIVE.state = (layout, configs)
    try:
        with switched(configs, NAME):
            yield
    finally:
        _ACTIVE.state = before


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

    Layers under gradient checkpointing run again in the backward pass, when the batch's context has been
    left and another batch may even have passed; on a GPU they do so in another thread.
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
    """Make the function known to transformers (a second time changes nothing)."""
    from transformers import AttentionInterface

    # Importing the compiler takes a second, and as long as nobody has, nothing is compiled.
    compiler = "torch._dynamo" in sys.modules
    AttentionInterface.register(NAME, _kept_out() if compiler else packed_attention)


@cache
def _kept_out() -> Any:
    """The function for compiled models, which call it as it is: with its blocks, every batch would be compiled anew."""
    return torch.compiler.disable(packed_attention)


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
    """Attention of the pack, with the signature that transformers calls.

    Args:
        module: the attention layer; it must be causal.
        query: [1, H, T, D].
        key: [1, H_kv, T, D]; H is a multiple of H_kv.
        value: [1, H_kv, T, D_v].
        attention_mask: none is made for this function.
        dropout: share of weights set to 0.
        scaling: factor of the scores; 1/√D when None.
        sliding_window: tokens that a token sees, itself included.
        softcap: c in c·tanh(score / c).

    Returns:
        [1, T, H, D_v] and no weights.

    Raises:
        RuntimeError: called outside of `use_layout`, or with something that it cannot honour.
    """
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
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    sizes = [block.segments * block.length for block in layout.blocks]
    grouped = ((_ToBlocks.apply(x, layout).split(sizes)) for x in (q, k, v))
    outputs: list[torch.Tensor] = []
    for block, *tensors in zip(layout.blocks, *grouped, strict=True):
        qb, kb, vb = (x.unflatten(0, (block.segments, block.length)) for x in tensors)
        if softcap is None and not dropout and is_short(qb):
            out = attend_short(qb, kb, vb, scale, sliding_window)
        else:
            out = attend(qb, kb, vb, scale, sliding_window, softcap, dropout)
        outputs.append(out.flatten(0, 1))
    joined = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return _FromBlocks.apply(joined, layout).unsqueeze(0), None
