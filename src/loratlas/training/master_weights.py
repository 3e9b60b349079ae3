"""Adapter weights twice: float32 masters that the optimiser steps on, rounded copies that the model computes with.

With a bfloat16 base, float32 factors would make PEFT lift every activation to float32 and back at every site. The
factors are small, so it is the factors that are rounded, once a step:

    W ← round(M),   g = ∂L/∂W (bfloat16, summed over micro-batches in float32),   M ← AdamW(M, g)

M keeps the updates that are too small for bfloat16. Everything lies in one flat vector per group of the optimiser,
so that norm, clipping, update and rounding are a handful of calls whatever the number of sites.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loratlas.adapters.trained_heads import is_head
from loratlas.errors import SettingsError

if TYPE_CHECKING:
    import torch

ALIGN = 64
"""Every matrix begins at a multiple of so many numbers, as matrix kernels like it. The gaps stay 0."""


@dataclass(slots=True, kw_only=True)
class ParameterGroup:
    """Parameters that share a learning rate, end to end.

    Args:
        ratio: factor of the run's learning rate.
        names: of the parameters.
        parameters: of the model.
        master: float32 [n]; what the optimiser steps on.
        views: of ``master``, shaped like the parameters.
        work: [n] in the computing type; ``master`` itself where that is float32.
        gradients: of ``master``, shaped like the parameters.
    """

    ratio: float
    names: list[str]
    parameters: list[torch.nn.Parameter]
    master: torch.Tensor
    views: list[torch.Tensor]
    work: torch.Tensor
    gradients: list[torch.Tensor]

    def shaped(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Views of a vector laid out as ``master`` is, shaped like the parameters."""
        return _shaped(flat, self.parameters)


def _padded(parameter: torch.Tensor) -> int:
    """Numbers that a parameter takes up of the flat vector, the gap behind it counted."""
    return -(-parameter.numel() // ALIGN) * ALIGN


def _shaped(flat: torch.Tensor, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    views, start = [], 0
    for parameter in parameters:
        views.append(flat[start : start + parameter.numel()].view(parameter.shape))
        start += _padded(parameter)
    return views


def is_factor(name: str) -> bool:
    """Whether a parameter is one of PEFT's two plain low-rank factors of a linear map.

    >>> is_factor("base_model.model.layers.0.mlp.up_proj.lora_A.default.weight")
    True
    """
    return (".lora_A." in name or ".lora_B." in name) and name.endswith(".weight")


def learns_faster(name: str) -> bool:
    """Whether LoRA+ raises the learning rate of a parameter: of B, and as in PEFT of DoRA's lengths.

    >>> [learns_faster(f"q.{name}.default.weight") for name in ("lora_A", "lora_B", "lora_magnitude_vector")]
    [False, True, True]
    """
    return ".lora_B." in name or ".lora_magnitude_vector." in name


def compute_dtype(model: Any) -> torch.dtype:
    """The type that the frozen base computes in: that of its first floating parameter."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and parameter.is_floating_point() and ".lora_" not in name:
            return parameter.dtype
    import torch

    return torch.float32


class MasterWeights:
    """The masters of a model's trainable parameters. While they are `open`, the model computes with rounded copies.

    Args:
        model: a `PeftModel`; whatever requires a gradient is trained.
        loraplus: learning rate of the B factors, and of DoRA's lengths, over that of all others; None for 1.
        dtype: numbers that the model computes in; None for those of its frozen base.
    """

    def __init__(
        self, model: Any, *, loraplus: float | None = None, dtype: torch.dtype | None = None
    ) -> None:
        import torch

        self._model, self._loraplus, self._torch = model, loraplus, torch
        self.dtype = compute_dtype(model) if dtype is None else dtype
        self.rebuild()

    def rebuild(self) -> None:
        """Take the model's trainable parameters as they are now. Not while `open`.

        Raises:
            SettingsError: nothing requires a gradient.
        """
        named = [(name, p) for name, p in self._model.named_parameters() if p.requires_grad]
        if not named:
            raise SettingsError(
                given="a model to train",
                found="no parameter that requires a gradient",
                instead="a model that a plan was attached to",
            )
        ratios = {1.0: named}
        if self._loraplus is not None and self._loraplus != 1.0:
            ratios = {
                1.0: [(name, p) for name, p in named if not learns_faster(name)],
                float(self._loraplus): [(name, p) for name, p in named if learns_faster(name)],
            }
        self.groups = [self._group(ratio, chosen) for ratio, chosen in ratios.items() if chosen]

    def _group(self, ratio: float, named: list[tuple[str, torch.nn.Parameter]]) -> ParameterGroup:
        import torch

        parameters = [parameter for _, parameter in named]
        total = sum(_padded(parameter) for parameter in parameters)
        master = torch.zeros(total, dtype=torch.float32, device=parameters[0].device)
        gradient = torch.zeros_like(master)
        views = _shaped(master, parameters)
        for view, parameter in zip(views, parameters, strict=True):
            view.copy_(parameter.detach())
        work = master if self.dtype == torch.float32 else master.to(self.dtype)
        master.grad = gradient
        return ParameterGroup(
            ratio=ratio,
            names=[name for name, _ in named],
            parameters=parameters,
            master=master,
            views=views,
            work=work,
            gradients=_shaped(gradient, parameters),
        )

    def open(self) -> None:
        """Let the model compute with the rounded copies."""
        for group in self.groups:
            start = 0
            for name, parameter, view in zip(group.names, group.parameters, group.views, strict=True):
                size = parameter.numel()
                # What is neither a plain factor nor of a head (a magnitude vector) computes as it is.
                rounded = group.work[start : start + size].view(parameter.shape)
                parameter.grad = None
                parameter.data = rounded if is_factor(name) or is_head(name) else view
                start += _padded(parameter)
        self.round()

    def close(self) -> None:
        """Give the model its float32 weights, in memory of their own; a head stays in the base's numbers."""
        for group in self.groups:
            for name, parameter, view in zip(group.names, group.parameters, group.views, strict=True):
                parameter.grad = None
                parameter.data = view.to(self.dtype, copy=True) if is_head(name) else view.clone()

    def round(self) -> None:
        """Renew the rounded copies."""
        for group in self.groups:
            if group.work is not group.master:
                group.work.copy_(group.master)

    def zero(self) -> None:
        """Forget the gradients."""
        for group in self.groups:
            assert group.master.grad is not None
            group.master.grad.zero_()

    def collect(self) -> None:
        """Add the model's gradients to the masters' and free them."""
        for group in self.groups:
            into, gradients = [], []
            for parameter, gradient in zip(group.parameters, group.gradients, strict=True):
                if parameter.grad is not None:
                    into.append(gradient)
                    gradients.append(parameter.grad)
                    parameter.grad = None
            if into:
                lifted = [g if g.dtype == self._torch.float32 else g.float() for g in gradients]
                self._torch._foreach_add_(into, lifted)  # pyright: ignore[reportPrivateImportUsage]

    def observe(self) -> None:
        """Copy the model's weights, and its gradients where it has any: for a model that somebody else trains."""
        for group in self.groups:
            columns = zip(group.parameters, group.views, group.gradients, strict=True)
            for parameter, view, gradient in columns:
                view.copy_(parameter.detach())
                if parameter.grad is not None:
                    gradient.copy_(parameter.grad)
                else:
                    gradient.zero_()

    def norm(self) -> torch.Tensor:
        """Euclidean norm of the whole gradient."""
        norms = [group.master.grad.norm() for group in self.groups if group.master.grad is not None]
        return norms[0] if len(norms) == 1 else self._torch.stack(norms).norm()

    def finite(self) -> bool:
        """Whether every weight is a number."""
        return all(bool(self._torch.isfinite(group.master).all()) for group in self.groups)

    def scale(self, factor: float) -> None:
        """Multiply the whole gradient."""
        for group in self.groups:
            assert group.master.grad is not None
            group.master.grad.mul_(factor)

    def copy(self) -> list[torch.Tensor]:
        """The masters as they are now."""
        return [group.master.clone() for group in self.groups]

    def restore(self, copies: list[torch.Tensor]) -> None:
        """Put back what `copy` returned."""
        for group, kept in zip(self.groups, copies, strict=True):
            group.master.copy_(kept)
        self.round()

    def named(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, float32 view) of every parameter."""
        for group in self.groups:
            yield from zip(group.names, group.views, strict=True)

    def lasting(self) -> list[torch.Tensor]:
        """Tensors that live as long as this does."""
        held = [t for group in self.groups for t in (group.master, group.master.grad, group.work)]
        return [tensor for tensor in held if tensor is not None]
