"""The low-rank layer without idle work: PEFT's numbers, fewer passes over the activations.

PEFT computes y = xW + s·((xA)B) site by site, with one pass over [T, d_out] for the scale, one for the sum, and twice
as many in the backward pass. Here sites that read the same input (q, k, v; gate, up) are one function: the scale sits
in the small product, sums happen inside the matrix products, and the input is read once for all of them.

    h = x [A₁; A₂; …]ᵀ,   yᵢ = x Wᵢᵀ + bᵢ;   yᵢ += sᵢ · hᵢ Bᵢᵀ
    ghᵢ = sᵢ · gᵢ Bᵢ,   dx = Σ gᵢ Wᵢ + [gh₁ gh₂ …] [A₁; A₂; …],   dAᵢ = ghᵢᵀ x,   dBᵢ = sᵢ · gᵢᵀ hᵢ

Only x and h are kept for the backward pass; with dropout also which numbers it took, one draw for all sites of the
input (`loratlas.adapters.layers.sparse_dropout`), and x∘m/(1 − p) takes the place of x in h and dA. That sites of one
input share a
mask m is a departure from PEFT, which draws one for each; so is that float32 factors over a 16-bit base are rounded to
16 bits, where PEFT lifts every activation to float32.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora.layer import Linear, LoraLayer
from torch.autograd.function import once_differentiable

from loratlas.adapters.layers.gelu import fuse, write_out
from loratlas.adapters.layers.low_rank import (
    add_to_input,
    affine,
    back_through,
    lowered,
    raise_into,
    slopes,
    together,
)
from loratlas.adapters.layers.sparse_dropout import draw, dropped
from loratlas.modeling import unwrap


@dataclass(frozen=True, slots=True, kw_only=True)
class _Site:
    """What one layer contributes: W [d_in, d_out] as it multiplies x from the right, A [r, d_in], B [d_out, r]."""

    W: torch.Tensor
    bias: torch.Tensor | None
    A: torch.Tensor
    B: torch.Tensor
    scale: float
    dropout: float


class _LowRank(torch.autograd.Function):
    """(x [T, d_in], what is dropped, 1/(1 − p), scales, then W, bias, A, B of each site) → y [T, d_out] of each."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        drop: torch.Tensor | None,
        lift: float,
        scales: tuple[float, ...],
        *flat: torch.Tensor | None,
    ) -> tuple[torch.Tensor, ...]:
        sites = [flat[start : start + 4] for start in range(0, len(flat), 4)]
        down = together([A for _, _, A, _ in sites])
        h = lowered(x, down, drop, lift)
        outputs = [affine(x, W, bias) for W, bias, _, _ in sites]  # pyright: ignore[reportArgumentType]
        raise_into(outputs, h, [(B, scale) for (_, _, _, B), scale in zip(sites, scales, strict=True)])  # pyright: ignore[reportArgumentType]
        weights = [tensor for W, _, _, B in sites for tensor in (W, B)]
        ctx.save_for_backward(x, drop, h, down, *weights)
        ctx.lift, ctx.scales = lift, scales
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *upstream: torch.Tensor | None
    ) -> tuple[Any, ...]:
        x, drop, h, down, *weights = ctx.saved_tensors
        ups = [(B, scale) for B, scale in zip(weights[1::2], ctx.scales, strict=True)]
        needed = [ctx.needs_input_grad[4 + 4 * index + 3] for index in range(len(ups))]
        gh, d_up = slopes(upstream, h, ups, ctx.lift, needed)
        dx = back_through(weights[::2], upstream) if ctx.needs_input_grad[0] else None
        if dx is not None:
            add_to_input(dx, gh, down, drop)
        d_down = gh.t() @ dropped(x, drop)
        gradients: list[Any] = [dx, None, None, None]
        start = 0
        for index, d_B in enumerate(d_up):
            rank = weights[2 * index + 1].shape[1]
            gradients += [None, None, d_down[start : start + rank], d_B]
            start += rank
        return tuple(gradients)


def _run(x: torch.Tensor, sites: Sequence[_Site]) -> tuple[torch.Tensor, ...]:
    """Outputs of sites that read x [T, d_in], all with the same dropout."""
    p = sites[0].dropout
    drop = draw(x, p) if p else None
    flat = [tensor for site in sites for tensor in (site.W, site.bias, site.A, site.B)]
    return _LowRank.apply(x, drop, 1 / (1 - p), tuple(site.scale for site in sites), *flat)  # type: ignore[no-any-return]


@dataclass(slots=True)
class _Group:
    """Layers that read the same tensor.

    The first one that is called computes all outputs; the others fetch theirs. Should they read different tensors
    after all, each computes alone from then on.
    """

    layers: list[Any]
    read: Any = None  # weak reference to the tensor that the outputs in waiting belong to
    version: int = 0
    waiting: dict[int, torch.Tensor] = field(default_factory=dict)
    separate: bool = False

    def output(self, layer: Any, x: torch.Tensor, own: _Site) -> torch.Tensor:
        """The layer's output, flat: [T, d_out]."""
        version = 0 if x.is_inference() else x._version
        if self.read is not None and self.read() is x and self.version == version:
            values = self.waiting.pop(id(layer), None)
            if values is not None:
                return values
        elif self.waiting:
            self.separate = True
            self.waiting = {}
        flat = x.reshape(-1, x.shape[-1])
        if self.separate or self.waiting:
            return _run(flat, [own])[0]
        members, sites = [layer], [own]
        for other in self.layers:
            values = None if other is layer else _plain(other, x)
            if values is not None and values.dropout == own.dropout and len(values.W) == len(own.W):
                members.append(other)
                sites.append(values)
        outputs = _run(flat, sites)
        self.read, self.version = weakref.ref(x), version
        self.waiting = {id(m): y for m, y in zip(members[1:], outputs[1:], strict=True)}
        return outputs[0]


class LeanLinear(Linear):
    """PEFT's low-rank layer over a plain matrix; what it does not cover goes through PEFT's own forward pass."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        plain = None if args or kwargs else _plain(self, x)
        if plain is None:
            return super().forward(x, *args, **kwargs)
        group: _Group | None = vars(self).get("_group")
        # A compiler fuses what reads the same tensor by itself, and outputs in waiting would be a state it cannot see.
        if group is None or torch.compiler.is_compiling():
            y = _run(x.reshape(-1, x.shape[-1]), [plain])[0]
        else:
            y = group.output(self, x, plain)
        return y.view(*x.shape[:-1], y.shape[-1])


def _plain(layer: Any, x: torch.Tensor) -> _Site | None:
    """What the layer contributes if its present state is the plain case, else None."""
    from transformers.pytorch_utils import Conv1D

    if layer.disable_adapters or layer.merged_adapters:
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1 or active[0] in layer.lora_variant or layer.lora_bias[active[0]]:
        return None
    name, base = active[0], layer.base_layer
    if (
        type(base) not in (torch.nn.Linear, Conv1D)
        or base.weight.requires_grad
        or base.weight.dtype != x.dtype
    ):
        return None
    # Whatever is hooked onto the base's own forward pass (offloading, say) must be called.
    if base._forward_hooks or base._forward_pre_hooks or "forward" in vars(base):
        return None
    A, B = layer.lora_A[name].weight, layer.lora_B[name].weight
    if torch.is_autocast_enabled(x.device.type):
        return None
    if x.dtype in (torch.bfloat16, torch.float16):
        A, B = A.to(x.dtype), B.to(x.dtype)
    elif A.dtype != x.dtype or B.dtype != x.dtype:
        return None
    dropout = layer.lora_dropout[name]
    return _Site(
        W=base.weight if type(base) is Conv1D else base.weight.t(),
        bias=base.bias,
        A=A,
        B=B,
        scale=float(layer.scaling[name]),
        dropout=float(getattr(dropout, "p", 0.0)) if dropout.training else 0.0,
    )


def faster(model: Any) -> Any:
    """Let PEFT's plain low-rank layers of a model compute as `LeanLinear`, until `slower` is called.

    The class of layers that PEFT has dispatched is swapped, of exactly PEFT's class only: quantised layers and other
    methods have classes of their own. Saving, merging, switching off and all else of a `PeftModel` work as before.
    A GELU that transformers writes out in eight operations becomes one (`loratlas.adapters.layers.gelu`).

    Args:
        model: a `PeftModel`, or any module that holds PEFT's layers; changed in place.

    Returns:
        The model.

    Warns:
        UserWarning: once per model, where layers go through PEFT's own forward pass.

    Example:
        >>> import torch
        >>> type(faster(torch.nn.Sequential(torch.nn.Linear(2, 2)))[0]).__name__  # nothing of PEFT's, nothing to swap
        'Linear'
    """
    layers = {name: module for name, module in model.named_modules() if type(module) is Linear}
    for layer in layers.values():
        layer.__class__ = LeanLinear
    for group in _groups(model, layers):
        for layer in group.layers:
            layer._group = group
    fuse(model)
    _say_what_is_not_covered(model)
    return model


def slower(model: Any) -> Any:
    """Undo `faster`: every layer is PEFT's again.

    Returns:
        The model.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2))
        >>> slower(faster(model)) is model
        True
    """
    for module in model.modules():
        if type(module) is LeanLinear:
            vars(module).pop("_group", None)
            module.__class__ = Linear  # pyright: ignore[reportAttributeAccessIssue]
    write_out(model)
    return model


def is_lean(model: Any) -> bool:
    """Whether any layer of a model computes as `LeanLinear`."""
    return any(type(module) is LeanLinear for module in model.modules())


def regroup(model: Any) -> None:
    """Take note of layers that were put in or taken out of a model that is `faster`.

    Those that are new compute as `LeanLinear` from now on; those that went are in no group any more, so that nobody
    computes what they would.
    """
    slower(model)
    faster(model)


@contextmanager
def lean(model: Any) -> Iterator[int]:
    """Within this context a model is `faster`; one that is already stays so.

    Yields:
        How many layers compute as `LeanLinear`.
    """
    before = {id(module) for module in model.modules() if type(module) is LeanLinear}
    if not before:
        faster(model)
    try:
        yield sum(type(module) is LeanLinear for module in model.modules())
    finally:
        if not before:
            slower(model)


_SAID: weakref.WeakSet[Any] = weakref.WeakSet()
_INPUTS: weakref.WeakKeyDictionary[Any, list[list[str]]] = weakref.WeakKeyDictionary()


def _say_what_is_not_covered(model: Any) -> None:
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    special = [kind for kind in map(_special, layers) if kind]
    inner = unwrap(model)
    if special and inner not in _SAID:
        _SAID.add(inner)
        warnings.warn(
            f"{len(special)} of {len(layers)} adapted layers run PEFT's own forward pass: "
            f"{', '.join(sorted(set(special)))}",
            stacklevel=3,
        )


def _special(layer: Any) -> str | None:
    """Why a layer runs PEFT's own forward pass, as far as that can be told before it is called."""
    if type(layer) is not LeanLinear:
        return type(layer).__name__
    if layer.lora_variant:
        kinds = {type(variant).__name__ for variant in layer.lora_variant.values()}
        return "DoRA" if kinds <= {"DoraLinearVariant"} else ", ".join(sorted(kinds))
    return "low-rank factors with a bias" if any(layer.lora_bias.values()) else None


def _groups(model: Any, layers: dict[str, Any]) -> list[_Group]:
    """Adapted layers that read the same tensor, as the model's anatomy tells.

    From the anatomy and not from watching the first pass, so that every step of every process adds in the same order.
    """
    inner = unwrap(model)
    if not layers or getattr(inner, "config", None) is None:
        return []
    if inner not in _INPUTS:
        _INPUTS[inner] = _inputs(inner.config)
    prefix = next((name for name, module in model.named_modules() if module is inner), "")
    named = {name.removeprefix(f"{prefix}."): layer for name, layer in layers.items()}
    members = [[named[path] for path in paths if path in named] for paths in _INPUTS[inner]]
    return [_Group(same_input) for same_input in members if len(same_input) > 1]


def _inputs(config: Any) -> list[list[str]]:
    """Modules by the tensor they read; nothing where the architecture cannot be read."""
    from loratlas.anatomy.read import read
    from loratlas.errors import LoratlasError

    try:
        sites = read(config).sites
    except LoratlasError:
        return []
    readers: dict[Any, list[str]] = {}
    for site in sites:
        if site.input_group is not None and site.kind in ("linear", "conv1d"):
            readers.setdefault(site.input_group, []).append(site.module)
    return [paths for paths in readers.values() if len(paths) > 1]
