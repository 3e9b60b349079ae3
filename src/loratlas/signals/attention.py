"""Attention: how spread patterns are, and how much they would move under the data's gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, final

import torch

from loratlas.anatomy.role_table import ATTENTION_FAMILIES
from loratlas.signals.base import ALL_FOLDS, FoldSums, Signal
from loratlas.signals.column import Column

if TYPE_CHECKING:
    from loratlas.data.batches.batching import Batch


@final
class Attention(Signal):
    """Entropy of attention patterns, and their movement, summed over a layer's heads.

    With P [n, n] the pattern of a head on one example, S its scores, L the summed loss and O = P V:

        attention_entropy = Σ_h mean over queries t of −Σ_s P_ts ln P_ts
        attention         = Σ_h mean over queries t of ½ ‖P_t ∘ (D_t − P_t·D_t)‖₁,
                            D = ∂L/∂S = P ∘ (dP − rowsum(P ∘ dP)),  dP = dO Vᵀ

    `attention` is, to first order, the probability that moves per query when the scores take a step of size 1 against
    the gradient. q, k, v and o of a layer, split or fused, get the same number: it ranks layers, not parts. `heads` has
    the single heads.

    Unit: nats; probability per unit step. Adam's geometry is not taken into account: the step is one on scores.

    Cost: the patterns of a layer are formed once more in each direction, example by example: 4·n²·d operations for n
    tokens of width d. Memory: one pattern at a time; queries, keys and values until the backward pass comes by.

    Where a model's attention does not go through transformers' interface, or works with what this does not know
    (softcaps, sinks), there is no value.

    Source: entropy as in Zhai et al. (2023), arXiv:2303.06296. The movement is ours.
    """

    name = "attention"
    columns = (
        Column(name="attention", unit="probability per unit step of scores", pays="high", adam="none"),
        Column(name="attention_entropy", unit="nats, summed over heads", pays="high", adam="none"),
    )
    needs = "backward"

    def reset(self, model: Any) -> None:
        self.moved, self.entropy, self.queries = FoldSums(), FoldSums(), FoldSums()
        names = {id(module): name for name, module in model.named_modules()}
        self._names = names
        self._sites = {
            site.path: site.module
            for site in self.sites
            if site.family in ATTENTION_FAMILIES and site.kind != "experts"
        }

    def _layer(self, path: str) -> str | None:
        """The attention module that a site stands in, if it was seen at work."""
        module, seen = self._sites.get(path), self.queries.keys()
        while module:
            module = module.rpartition(".")[0]
            if (module, 0) in seen:
                return module
        return None

    @contextmanager
    def during(self, model: Any, batch: Batch) -> Iterator[None]:
        def seen(module: Any, heads: AttentionHeads, out: torch.Tensor) -> None:
            self._report(self._names[id(module)], heads, out)

        with watched_attention(batch, seen):
            yield

    def _report(self, name: str, heads: AttentionHeads, out: torch.Tensor) -> None:
        fold = self.fold
        with torch.no_grad():
            self.entropy.add(fold, (name, 0), heads.entropy())
        self.queries.add(fold, (name, 0), torch.tensor(float(heads.tokens)))

        def learn(g: torch.Tensor) -> None:
            with torch.no_grad():
                self.moved.add(fold, (name, 0), heads.movement(g.detach()))

        if out.requires_grad:
            out.register_hook(learn)

    def heads(self, path: str, folds: Sequence[int] = ALL_FOLDS) -> dict[str, list[float]]:
        """Column → value of each query head of the layer that a site stands in; empty where there is none."""
        layer = self._layer(path)
        by_site = {}
        for name, sums in (("attention", self.moved), ("attention_entropy", self.entropy)):
            total = sums.total((layer, 0), folds) if layer else None
            queries = self.queries.total((layer, 0), folds) if layer else None
            if total is not None and queries is not None:
                by_site[name] = (total.double() / queries.double()).tolist()
        return by_site

    def values(self, folds: Sequence[int] = ALL_FOLDS) -> dict[str, dict[str, float]]:
        columns: dict[str, dict[str, float]] = {column.name: {} for column in self.columns}
        for path in self._sites:
            for name, heads in self.heads(path, folds).items():
                columns[name][path] = sum(heads)
        return columns


@contextmanager
def watched_attention(
    batch: Batch, seen: Callable[[Any, AttentionHeads, torch.Tensor], None]
) -> Iterator[None]:
    """Within this context every attention that goes through transformers' interface is shown to a function.

    Args:
        batch: that passes through the model meanwhile.
        seen: gets the attention's module, its heads and its output. Attentions that work with what is not known here
            (softcaps, sinks, biases, caches) are passed over.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from loratlas.data.batches.packed_attention import NAME, register

    def watched(attend: Callable[..., Any]) -> Callable[..., Any]:
        def call(module: Any, query: Any, key: Any, value: Any, mask: Any = None, **options: Any) -> Any:
            out, weights = attend(module, query, key, value, mask, **options)
            known = all(options.get(name) is None for name in ("softcap", "s_aux", "position_bias"))
            if known and query.shape[2] == key.shape[2] and getattr(module, "is_causal", True):
                scale = options.get("scaling") or query.shape[-1] ** -0.5
                window = options.get("sliding_window")
                heads = AttentionHeads(query.detach(), key.detach(), value.detach(), scale, window, batch)
                seen(module, heads, out)
            return out, weights

        return call

    register()
    own = ALL_ATTENTION_FUNCTIONS._local_mapping
    before = dict(own)
    for name in (NAME, "sdpa"):
        own[name] = watched(ALL_ATTENTION_FUNCTIONS[name])
    try:
        yield
    finally:
        own.clear()
        own.update(before)


class AttentionHeads:
    """Queries, keys and values of one layer on one batch, taken apart by example."""

    def __init__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        window: int | None,
        batch: Batch,
    ) -> None:
        self.q, self.k, self.v, self.scale, self.window = q, k, v, scale, window
        self.packed, self.lengths = batch.packed, batch.lengths
        self.tokens = sum(batch.lengths)

    def places(self) -> Iterator[tuple[int, slice]]:
        """(row of the batch, tokens) of each example."""
        start = 0
        for row, n in enumerate(self.lengths):
            yield (0, slice(start, start + n)) if self.packed else (row, slice(0, n))
            start += n

    def pattern(self, row: int, here: slice) -> torch.Tensor:
        """P [H, n, n] of one example, float32."""
        q, k = self.q[row, :, here].float(), self._repeated(self.k[row, :, here]).float()
        n = q.shape[1]
        position = torch.arange(n, device=q.device)
        seen = position[None, :] <= position[:, None]
        if self.window is not None:
            seen &= position[None, :] > position[:, None] - self.window
        scores = (q @ k.transpose(1, 2)) * self.scale
        return scores.masked_fill(~seen, float("-inf")).softmax(-1)

    def _repeated(self, x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(self.q.shape[1] // x.shape[0], 0)

    def entropy(self) -> torch.Tensor:
        """Σ over queries of the entropy, [H]."""
        total = self.q.new_zeros(self.q.shape[1], dtype=torch.float32)
        for row, here in self.places():
            total += torch.special.entr(self.pattern(row, here)).sum((1, 2))
        return total

    def distances(self, other: AttentionHeads) -> list[float]:
        """Of every example, ½ Σ_s |P_ts − P'_ts| to other patterns of the same rows: mean over queries, sum over heads.

        Total variation distance: the probability that lies elsewhere.
        """
        return [
            float((self.pattern(row, here) - other.pattern(row, here)).abs().sum((0, 2)).mean() / 2)
            for row, here in self.places()
        ]

    def movement(self, g: torch.Tensor) -> torch.Tensor:
        """Σ over queries of the probability that moves, [H]; g: gradient at the output, [B, T, H, D]."""
        total = self.q.new_zeros(self.q.shape[1], dtype=torch.float32)
        for row, here in self.places():
            P = self.pattern(row, here)
            v = self._repeated(self.v[row, :, here]).float()
            dP = g[row, here].transpose(0, 1).float() @ v.transpose(1, 2)
            D = P * (dP - (P * dP).sum(-1, keepdim=True))
            total += (P * (D - (P * D).sum(-1, keepdim=True))).abs().sum((1, 2)) / 2
        return total
