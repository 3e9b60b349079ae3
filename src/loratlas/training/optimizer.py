"""AdamW over the masters, its learning rate over time, and the state that a checkpoint keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loratlas.training.master_weights import MasterWeights
from loratlas.training.settings import Settings

if TYPE_CHECKING:
    import torch

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """What Adam keeps of one parameter, float32 and shaped like it.

    Args:
        first: decayed mean of its gradients.
        second: decayed mean of their squares.
    """

    first: torch.Tensor
    second: torch.Tensor


def rate(settings: Settings, step: int, steps: int) -> float:
    """Learning rate of a step.

    Warm-up over the first w = ⌈warmup · steps⌉ steps: lr · (step + 1) / w. Then lr, or
    lr · ½ (1 + cos(π (step − w) / (steps − w))).

    Args:
        settings: ``lr``, ``schedule``, ``warmup``.
        step: from 0.
        steps: of the whole run.

    >>> [round(rate(Settings(lr=1.0, warmup=0.5, steps=4), s, 4), 3) for s in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warm = math.ceil(settings.warmup * steps)
    if step < warm:
        return settings.lr * (step + 1) / warm
    if settings.schedule == "constant":
        return settings.lr
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) over the flat masters, one group per learning rate.

    Args:
        masters: what is trained.
        settings: rates, decay, clipping.
        steps: of the whole run.
    """

    def __init__(self, masters: MasterWeights, settings: Settings, *, steps: int) -> None:
        self.masters, self.settings, self.steps = masters, settings, steps
        self._adam = self._fresh()

    def _fresh(self) -> Any:
        import torch

        settings = self.settings
        return torch.optim.AdamW(
            [{"params": [group.master], "ratio": group.ratio} for group in self.masters.groups],
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def update(self, step: int, norm: float) -> float:
        """Clip, step, round.

        Args:
            step: from 0.
            norm: of the gradient.

        Returns:
            The learning rate used.
        """
        clip = self.settings.clip
        if clip is not None and norm > clip:
            self.masters.scale(clip / norm)
        lr = rate(self.settings, step, self.steps)
        for group in self._adam.param_groups:
            group["lr"] = lr * group["ratio"]
        self._adam.step()
        self.masters.round()
        return lr

    def moments(self) -> dict[str, Moments]:
        """Name → moments of every parameter, as views; empty before the first step."""
        found = {}
        for group in self.masters.groups:
            if group.master in self._adam.state:
                flat = self._adam.state[group.master]
                first, second = (group.shaped(flat[name]) for name in MOMENTS)
                for name, one, two in zip(group.names, first, second, strict=True):
                    found[name] = Moments(first=one, second=two)
        return found

    def rebuild(self, moments: Mapping[str, Moments], step: int) -> None:
        """Begin anew over master weights that were laid out anew.

        Args:
            moments: of parameters, by name; those of others begin at 0. Counted as ``step`` steps old all of them.
            step: steps done.
        """
        import torch

        self._adam = self._fresh()
        if not step:
            return
        for group in self.masters.groups:
            flat = [torch.zeros_like(group.master) for _ in MOMENTS]
            shaped = [group.shaped(vector) for vector in flat]
            for index, name in enumerate(group.names):
                if name in moments:
                    shaped[0][index].copy_(moments[name].first)
                    shaped[1][index].copy_(moments[name].second)
            self._put(group.master, dict(zip(MOMENTS, flat, strict=True)), step)

    def state(self) -> dict[str, torch.Tensor]:
        """Both moments, flat, by group; empty before the first step."""
        return {
            f"{index}.{moment}": self._adam.state[group.master][moment]
            for index, group in enumerate(self.masters.groups)
            for moment in MOMENTS
            if group.master in self._adam.state
        }

    def load(self, state: dict[str, torch.Tensor], step: int) -> None:
        """Take up the moments after so many steps."""
        for index, group in enumerate(self.masters.groups):
            loaded = {moment: state.get(f"{index}.{moment}") for moment in MOMENTS}
            kept = {
                name: value.to(group.master.device).clone()
                for name, value in loaded.items()
                if value is not None
            }
            if len(kept) == len(MOMENTS):
                self._put(group.master, kept, step)

    def _put(self, master: torch.Tensor, moments: dict[str, torch.Tensor], step: int) -> None:
        import torch

        # Where the fused kernel looks for it: on the device of the weights.
        count = torch.full((), float(step), dtype=torch.float32, device=master.device)
        self._adam.state[master] = {"step": count, **moments}
