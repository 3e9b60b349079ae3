"""The adapters of several runs over one frozen base: who reads which rows, and one function that serves them all.

A pass holds the tokens of several runs end to end. Run k owns the rows [s_k, e_k), the offset table of the pass, and
has factors of its own at the sites of its own plan, of any rank:

    y[s_k:e_k] = x[s_k:e_k] Wᵀ + b + scale_k · (x[s_k:e_k] A_kᵀ) B_kᵀ

The frozen product is taken once for all rows; the low-rank part run by run, so that a NaN of one run stays in its own
rows (a masked product over all runs would spread it: 0 · NaN is NaN) and a run costs nothing where it adapts nothing.
Gradients of the factors are added where they belong, into the run's own vector, without leaves in the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from loratlas.adapters import kernels
from loratlas.adapters.dropout import draw, drop_, dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """One run at one site.

    Args:
        A: [r, d_in], in the computing type.
        B: [d_out, r].
        to_down: gradient of A's master, float32; added to.
        to_up: likewise of B's.
        scale: in front of B A.
    """

    A: torch.Tensor
    B: torch.Tensor
    to_down: torch.Tensor
    to_up: torch.Tensor
    scale: float


class Tenant:
    """One run as the bank sees it.

    Args:
        factors: module path → its factors there.
        dropout: probability in front of A.
    """

    def __init__(self, factors: dict[str, Factors], *, dropout: float) -> None:
        self.factors, self.dropout = factors, dropout
        self._random: torch.Tensor | None = None

    def begin(self, seed: int) -> None:
        """Start the stream of dropout masks of a step."""
        self._random = torch.Generator().manual_seed(seed).get_state()

    def draw(self, x: torch.Tensor) -> torch.Tensor | None:
        """What is dropped next in the run's own stream: what the run alone would draw for these rows."""
        if not self.dropout:
            return None
        assert self._random is not None
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._random)
            drop = draw(x, self.dropout)
            self._random = torch.get_rng_state()
        return drop


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A tenant's rows in a pass: of all tokens, and of the counted ones (the rows that an output embedding reads)."""

    tenant: Tenant
    tokens: slice
    counted: slice


@dataclass(slots=True)
class _Group:
    """Modules that read the same tensor; the first that is called computes the outputs of all."""

    modules: dict[str, Any]
    waiting: dict[str, torch.Tensor] = field(default_factory=dict)
    read: torch.Tensor | None = None

    def output(self, path: str, x: torch.Tensor, bank: Bank) -> torch.Tensor:
        if self.read is x and path in self.waiting:
            y = self.waiting.pop(path)
            if not self.waiting:
                self.read = None
            return y
        wanted = [path, *(name for name in self.modules if name != path)] if not self.waiting else [path]
        served = [name for name in wanted if any(name in share.tenant.factors for share in bank.shares)]
        flat = x.reshape(-1, x.shape[-1])
        if path not in served:
            return _frozen(self.modules[path], flat)
        outputs = _product(flat, [(name, self.modules[name]) for name in served], bank)
        if len(served) > 1:
            self.read, self.waiting = x, dict(zip(served[1:], outputs[1:], strict=True))
        return outputs[0]

    def forget(self) -> None:
        self.read, self.waiting = None, {}


def _weights(module: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """W as it multiplies x from the right, [d_in, d_out], and the bias."""
    return (module.weight if isinstance(module, Conv1D) else module.weight.t()), module.bias


def _frozen(module: Any, x: torch.Tensor) -> torch.Tensor:
    W, bias = _weights(module)
    return x @ W if bias is None else torch.addmm(bias, x, W)


def _product(x: torch.Tensor, sites: list[tuple[str, Any]], bank: Bank) -> tuple[torch.Tensor, ...]:
    parts = []
    for share in bank.shares:
        here = share.tokens if len(x) == bank.tokens else share.counted
        found = [(place, share.tenant.factors[name]) for place, (name, _) in enumerate(sites)
                 if name in share.tenant.factors]  # fmt: skip
        if found and here.stop > here.start:
            drop = share.tenant.draw(x[here])
            parts.append(_Part(here, found, drop, 1 / (1 - share.tenant.dropout)))
    return _Segments.apply(x, bank.anchor, [_weights(module) for _, module in sites], parts)  # type: ignore[no-any-return]


@dataclass(slots=True)
class _Part:
    """A run's rows at one group of sites: factors by place of the site, what is dropped, 1/(1 − p)."""

    rows: slice
    factors: list[tuple[int, Factors]]
    drop: torch.Tensor | None
    lift: float

    def read(self, x: torch.Tensor) -> torch.Tensor:
        return dropped(x[self.rows], self.drop)

    def down(self) -> torch.Tensor:
        factors = [f.A for _, f in self.factors]
        return factors[0] if len(factors) == 1 else torch.cat(factors)


class _Segments(torch.autograd.Function):
    """(x [T, d_in], anchor, weights of the sites, parts) → y [T, d_out] of every site."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        anchor: torch.Tensor,
        weights: Sequence[tuple[torch.Tensor, torch.Tensor | None]],
        parts: Sequence[_Part],
    ) -> tuple[torch.Tensor, ...]:
        outputs = [x @ W if bias is None else torch.addmm(bias, x, W) for W, bias in weights]
        small = []
        for part in parts:
            h = part.read(x) @ part.down().t()
            if part.lift != 1.0:
                h.mul_(part.lift)
            start = 0
            for place, f in part.factors:
                rank = len(f.A)
                outputs[place][part.rows].addmm_(h[:, start : start + rank], f.B.t(), alpha=f.scale)
                start += rank
            small.append(h)
        ctx.save_for_backward(x, *small)
        ctx.weights, ctx.parts = [W for W, _ in weights], parts
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *upstream: torch.Tensor | None
    ) -> tuple[Any, ...]:
        x, *small = ctx.saved_tensors
        dx: torch.Tensor | None = None
        if ctx.needs_input_grad[0]:
            for W, g in zip(ctx.weights, upstream, strict=True):
                if g is not None:
                    dx = g @ W.t() if dx is None else dx.addmm_(g, W.t())
        for part, h in zip(ctx.parts, small, strict=True):
            slopes, start = [], 0
            for place, f in part.factors:
                rank, g = len(f.A), upstream[place]
                if g is None:  # an output that nobody used
                    slopes.append(h.new_zeros(len(h), rank))
                else:
                    rows = g[part.rows]
                    slopes.append((rows @ f.B).mul_(f.scale * part.lift))
                    f.to_up.add_((h[:, start : start + rank].t() @ rows).mul_(f.scale).t())
                start += rank
            slope = slopes[0] if len(slopes) == 1 else torch.cat(slopes, 1)
            if dx is not None and part.drop is None:
                dx[part.rows].addmm_(slope, part.down())
            elif dx is not None:
                dx[part.rows].add_(drop_(slope @ part.down(), part.drop))
            start = 0
            gradient = slope.t() @ part.read(x)
            for _, f in part.factors:
                f.to_down.add_(gradient[start : start + len(f.A)])
                start += len(f.A)
        return dx, None, None, None


class _BankLinear(torch.nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _serve(self, input)


class _BankConv1D(Conv1D):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _serve(self, x)


def _serve(module: Any, x: torch.Tensor) -> torch.Tensor:
    path, group, bank = module._bank
    y = group.output(path, x, bank)
    return y.view(*x.shape[:-1], y.shape[-1])


_SERVED: dict[type, type] = {torch.nn.Linear: _BankLinear, Conv1D: _BankConv1D}


class Bank:
    """Tenants over the modules of a frozen base.

    Args:
        model: the bare base; its modules are the bank's within `open` only.
        paths: modules that some tenant adapts.
    """

    def __init__(self, model: Any, paths: Sequence[str]) -> None:
        self.shares: Sequence[Share] = ()
        self.tokens = 0
        device = model.get_input_embeddings().weight.device
        # Something that requires a gradient, so that the lowest adapted sites have a backward pass.
        self.anchor = torch.zeros(0, device=device, requires_grad=True)
        chosen = {path: model.get_submodule(path) for path in paths}
        members = [[p for p in group if p in chosen] for group in kernels._inputs(model.config)]
        together = {path for group in members for path in group}
        groups = [group for group in members if group] + [[path] for path in paths if path not in together]
        self._groups = [_Group({path: chosen[path] for path in group}) for group in groups]

    @contextmanager
    def open(self) -> Iterator[None]:
        """Within this context the base's modules serve the tenants of the pass under way."""
        modules = [(path, m, group) for group in self._groups for path, m in group.modules.items()]
        for path, module, group in modules:
            module._bank = (path, group, self)
            module.__class__ = _SERVED[type(module)]
        try:
            yield
        finally:
            for _, module, _ in modules:
                del module._bank
                module.__class__ = next(own for own, kind in _SERVED.items() if kind is type(module))

    @contextmanager
    def seat(self, shares: Sequence[Share]) -> Iterator[None]:
        """Within this context a pass belongs to these tenants."""
        self.shares, self.tokens = shares, shares[-1].tokens.stop
        try:
            yield
        finally:
            self.shares = ()
            for group in self._groups:
                group.forget()
