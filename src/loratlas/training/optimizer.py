"""AdamW over the masters, its learning rate over time, and the state that a checkpoint keeps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from loratlas.training.master_weights import MasterWeights
from loratlas.training.settings import Settings

if TYPE_CHECKING:
    import torch

MOMENTS = ("exp_avg", "exp_avg_sq")


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
        import torch

        self.masters, self.settings, self.steps = masters, settings, steps
        self._adam = torch.optim.AdamW(
            [{"params": [group.master], "ratio": group.ratio} for group in masters.groups],
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

    def state(self) -> dict[str, torch.Tensor]:
        """Both moments, flat, by group; empty before the first step."""
        return {
            f"{place}.{moment}": self._adam.state[group.master][moment]
            for place, group in enumerate(self.masters.groups)
            for moment in MOMENTS
            if group.master in self._adam.state
        }

    def load(self, state: dict[str, torch.Tensor], step: int) -> None:
        """Take up the moments after so many steps."""
        import torch

        for place, group in enumerate(self.masters.groups):
            found = {moment: state.get(f"{place}.{moment}") for moment in MOMENTS}
            kept = {
                name: value.to(group.master.device).clone()
                for name, value in found.items()
                if value is not None
            }
            if len(kept) == len(MOMENTS):
                self._adam.state[group.master] = {"step": torch.tensor(float(step)), **kept}
