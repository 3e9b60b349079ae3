"""Stacks of experts under several runs: every expert's product once, the low-rank part for the tokens a run sent there.

PEFT adds scale · B_e A_e to all weights of a stack, whichever experts are used. The same numbers come from the tokens:
with the (token, expert) pairs sorted by expert, and within an expert by run, the pairs of expert e and run k are one
range [s, t), and

    y[s:t] = x[s:t] W_eᵀ + b_e + scale_k · (x[s:t] A_keᵀ) B_keᵀ

Nothing of the size of a stack is made for any run. In 16-bit numbers this is not what PEFT computes: there W_e + ΔW_ke
is rounded as a whole, here the frozen weight stays as it is.

What stands between the two products is the module's own (gate, activation, a norm): transformers' experts say it in one
way wherever they can be run by another implementation than their own loop (`transformers.integrations.moe`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from loratlas.training.fleet.adapter_slots import SlotFactors
from loratlas.training.fleet.row_slices import RowSlices


def serves(module: Any, leaf: str) -> bool:
    """Whether a module is a stack of experts whose parts are known, and a parameter one of its two matrices."""
    known = all(hasattr(module, name) for name in ("_apply_gate", "has_gate", "has_bias", "is_transposed"))
    return (
        known
        and not module._is_expert_parallel
        and leaf in (_up(module), "down_proj")
        and module.num_experts > 1
    )


def _up(module: Any) -> str:
    return "gate_up_proj" if module.has_gate else "up_proj"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Route:
    """Which pairs go where.

    Args:
        experts: (expert, its pairs), of those that have some.
        slots: (expert, share, their pairs), likewise.
    """

    experts: list[tuple[int, slice]]
    slots: list[tuple[int, int, slice]]


def experts(
    module: Any, path: str, row_slices: RowSlices, anchor: torch.Tensor, x: torch.Tensor, index: torch.Tensor,
    shares: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """What a stack makes of x.

    Args:
        module: the stack; `serves` knows it.
        path: of the module.
        row_slices: of the pass.
        anchor: something that requires a gradient.
        x: [T, d].
        index: int64 [T, k], the experts of each token.
        shares: [T, k], what each of them counts for.

    Returns:
        [T, d].
    """
    order, route = _route(module.num_experts, row_slices, x, index)
    k = index.shape[-1]
    hidden = x[order // k]
    for leaf in (_up(module), "down_proj"):
        name = f"{path}.{leaf}"
        held = [own.slot.factors.get(name) for own in row_slices.slices]
        # Where nobody adapts, the graph begins no earlier than it would.
        start = anchor if any(f is not None for f in held) else anchor.detach()
        hidden = _Stack.apply(hidden, start, _matrices(module, leaf), _biases(module, leaf), held, route)
        if leaf != "down_proj":
            hidden = module._apply_gate(hidden) if module.has_gate else module.act_fn(hidden)
    if getattr(module, "has_post_expert_norm", False):
        hidden = module.post_expert_norm(hidden)
    weighted = hidden * shares.reshape(-1)[order][:, None]
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return weighted[back].view(*index.shape, -1).sum(1).to(x.dtype)


def _matrices(module: Any, leaf: str) -> torch.Tensor:
    """W_e as they multiply x from the right, [E, d_in, d_out]."""
    W = getattr(module, leaf)
    return W if module.is_transposed else W.transpose(1, 2)


def _biases(module: Any, leaf: str) -> torch.Tensor | None:
    return getattr(module, f"{leaf}_bias") if module.has_bias else None


def _route(
    number: int, row_slices: RowSlices, x: torch.Tensor, index: torch.Tensor
) -> tuple[torch.Tensor, _Route]:
    """(pairs sorted by expert and then by token, where each range of them goes)."""
    k, many = index.shape[-1], len(row_slices.slices)
    ends = [row_slices.rows(own, x).stop for own in row_slices.slices]
    counts = torch.tensor([end - start for start, end in zip([0, *ends], ends, strict=False)])
    owner = torch.arange(many).repeat_interleave(counts, output_size=ends[-1]).to(x.device)
    owner = owner.repeat_interleave(k)
    chosen = index.reshape(-1)
    order = torch.argsort(chosen, stable=True)
    pairs = torch.bincount(chosen * many + owner, minlength=number * many).tolist()
    experts, slots, start = [], [], 0
    for expert in range(number):
        first = start
        for slot in range(many):
            n = pairs[expert * many + slot]
            if n:
                slots.append((expert, slot, slice(start, start + n)))
            start += n
        if start > first:
            experts.append((expert, slice(first, start)))
    return order, _Route(experts=experts, slots=slots)


class _Stack(torch.autograd.Function):
    """(x [N, d_in] sorted, anchor, W [E, d_in, d_out], biases, factors by share, route) → y [N, d_out]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        anchor: torch.Tensor,
        W: torch.Tensor,
        bias: torch.Tensor | None,
        held: Sequence[SlotFactors | None],
        route: _Route,
    ) -> torch.Tensor:
        y = x.new_empty(len(x), W.shape[-1])
        for expert, pairs in route.experts:
            torch.mm(x[pairs], W[expert], out=y[pairs])
            if bias is not None:
                y[pairs] += bias[expert]
        small = {}
        for slot, (expert, share, pairs) in enumerate(route.slots):
            f = held[share]
            if f is not None:
                small[slot] = x[pairs] @ f.A[expert].t()
                y[pairs].addmm_(small[slot], f.B[expert].t(), alpha=f.scale)
        ctx.save_for_backward(x, W, *small.values())
        ctx.held, ctx.route, ctx.slots = held, route, list(small)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, W, *kept = ctx.saved_tensors
        (g,) = upstream
        small: Mapping[int, torch.Tensor] = dict(zip(ctx.slots, kept, strict=True))
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        if dx is not None:
            for expert, pairs in ctx.route.experts:
                torch.mm(g[pairs], W[expert].t(), out=dx[pairs])
        for slot, h in small.items():
            expert, share, pairs = ctx.route.slots[slot]
            f = ctx.held[share]
            slope = (g[pairs] @ f.B[expert]).mul_(f.scale)
            f.to_up[expert].add_((h.t() @ g[pairs]).mul_(f.scale).t())
            f.to_down[expert].add_(slope.t() @ x[pairs])
            if dx is not None:
                dx[pairs].addmm_(slope, f.A[expert])
        return dx, None, None, None, None, None
