"""Muon for matrices, AdamW for all else, over float32 masters of a bfloat16 model.

Muon (Jordan 2024): the momentum of a matrix is replaced by the nearest orthogonal matrix, so that all its directions
learn equally fast. With the scale 0.2 √max(d_out, d_in) (Liu et al. 2025, arXiv:2502.16982) its update has the size of
AdamW's, and one schedule serves both. A fused matrix is taken apart first: its parts are maps of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
MOMENTUM = 0.95
BETAS = (0.9, 0.95)
EPSILON = 1e-10
CLIP = 1.0


@dataclass(slots=True, kw_only=True)
class Matrix:
    """One matrix that Muon steps on.

    Args:
        name: of the parameter.
        parts: how many maps are fused in it, along its longer side.
        axis: that side.
        scale: of its learning rate.
    """

    name: str
    parts: int
    axis: int
    scale: float = 1.0


def orthogonal(moment: torch.Tensor) -> torch.Tensor:
    """The nearest orthogonal matrices, roughly, by five Newton-Schulz steps in bfloat16.

    X ← a X + (b A + c A²) X, A = X Xᵀ, from X = G / ‖G‖.

    Args:
        moment: [n, r, c].

    Returns:
        [n, r, c], singular values in about 0.7 to 1.2.
    """
    a, b, c = COEFFICIENTS
    tall = moment.shape[1] > moment.shape[2]
    x = moment.transpose(1, 2) if tall else moment
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x.bfloat16()
    for _ in range(STEPS):
        square = x @ x.transpose(1, 2)
        x = a * x + (b * square + c * (square @ square)) @ x
    return (x.transpose(1, 2) if tall else x).float()


def matrices(model: Any) -> list[Matrix]:
    """What Muon steps on: the matrices inside the blocks, tables and heads excepted.

    T5 does not divide its attention logits by √d: its q begins that much smaller, and has to learn that much more
    slowly, or attention is one-hot after some hundred steps and learns no more.
    """
    queries = model.config.d_kv**-0.5 if model.config.model_type == "t5" else 1.0
    listed = []
    for name, parameter in model.named_parameters():
        inside = any(word in name for word in (".h.", ".layer.", ".block."))
        if parameter.dim() != 2 or not inside or "relative_attention_bias" in name:
            continue
        fused = name.endswith("c_attn.weight")
        scale = queries if name.endswith(".q.weight") else 1.0
        listed.append(Matrix(name=name, parts=3 if fused else 1, axis=1, scale=scale))
    return listed


class Optimizer:
    """Both optimisers; state as named float32 tensors, so that a checkpoint is a safetensors file.

    Args:
        model: in bfloat16; gradients are read from it, rounded masters written to it.
        muon: learning rate of the matrices at the peak.
        adamw: of all else.
    """

    def __init__(self, model: Any, *, muon: float, adamw: float) -> None:
        self.parameters = dict(model.named_parameters())
        self.rates = (muon, adamw)
        self.matrices = matrices(model)
        names = {matrix.name for matrix in self.matrices}
        self.others = [name for name in self.parameters if name not in names]
        self.masters = {name: value.detach().float().clone() for name, value in self.parameters.items()}
        self.first = {name: torch.zeros_like(value) for name, value in self.masters.items()}
        self.second = {name: torch.zeros_like(self.masters[name]) for name in self.others}
        self.gradients = {name: torch.zeros_like(value) for name, value in self.masters.items()}
        self.write()

    def collect(self) -> None:
        """Add the model's gradients to those of the step, in float32, and clear them."""
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                self.gradients[name] += parameter.grad
                parameter.grad = None

    @torch.no_grad()
    def step(self, step: int, factor: float, divisor: int) -> float:
        """One update.

        Args:
            step: from 0, for AdamW's bias correction.
            factor: of the peak rates, by the schedule.
            divisor: labelled tokens of the step, whose summed loss the gradients belong to.

        Returns:
            Norm of the gradient before it was clipped.
        """
        gradients = list(self.gradients.values())
        torch._foreach_div_(gradients, float(divisor))
        norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))
        if norm > CLIP:
            torch._foreach_mul_(gradients, CLIP / norm)
        self._muon(self.rates[0] * factor)
        self._adamw(self.rates[1] * factor, step + 1)
        torch._foreach_zero_(gradients)
        self.write()
        return norm

    def _muon(self, rate: float) -> None:
        groups: dict[tuple[int, ...], list[tuple[torch.Tensor, torch.Tensor, float]]] = {}
        for matrix in self.matrices:
            moment, gradient = self.first[matrix.name], self.gradients[matrix.name]
            moment.mul_(MOMENTUM).add_(gradient, alpha=1 - MOMENTUM)
            ahead = gradient.lerp(moment, MOMENTUM)
            parts = zip(
                ahead.chunk(matrix.parts, matrix.axis),
                self.masters[matrix.name].chunk(matrix.parts, matrix.axis),
                strict=True,
            )
            for update, master in parts:
                groups.setdefault(tuple(update.shape), []).append((update, master, matrix.scale))
        for shape, pieces in groups.items():
            updates = orthogonal(torch.stack([update for update, _, _ in pieces]))
            size = 0.2 * max(shape) ** 0.5
            for (_, master, scale), update in zip(pieces, updates, strict=True):
                master.add_(update, alpha=-rate * size * scale)

    def _adamw(self, rate: float, count: int) -> None:
        one, two = BETAS
        first = [self.first[name] for name in self.others]
        second = [self.second[name] for name in self.others]
        gradients = [self.gradients[name] for name in self.others]
        torch._foreach_lerp_(first, gradients, 1 - one)
        torch._foreach_mul_(second, two)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - two)
        root = torch._foreach_div(second, 1 - two**count)
        torch._foreach_sqrt_(root)
        torch._foreach_add_(root, EPSILON)
        masters = [self.masters[name] for name in self.others]
        torch._foreach_addcdiv_(masters, first, root, value=-rate / (1 - one**count))

    @torch.no_grad()
    def write(self) -> None:
        """Round the masters into the model."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self.masters[name])

    def state(self) -> dict[str, torch.Tensor]:
        """Masters and moments, by kind and name."""
        kinds = {"master": self.masters, "first": self.first, "second": self.second}
        return {f"{kind}:{name}": value for kind, held in kinds.items() for name, value in held.items()}

    @torch.no_grad()
    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a state."""
        for name, value in self.state().items():
            value.copy_(state[name])
        self.write()
