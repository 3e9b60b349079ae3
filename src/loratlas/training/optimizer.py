"""AdamW over the masters, its learning rate over time, and the state that a checkpoint keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from loratlas.adapters.adam_moments import Moments
from loratlas.training.master_weights import MasterWeights, ParameterGroup
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
        return settings.peak_lr * (step + 1) / warm
    if settings.schedule == "constant":
        return settings.peak_lr
    return settings.peak_lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) over the flat masters, one group per learning rate.

    Where all numbers are as old as the run, torch's fused kernel takes the step. Where some are younger, because a
    site's rank has grown, every number has the bias correction of its own age t, the steps it has taken part in:

        m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²,   θ ← θ − η (m/(1 − β₁ᵗ)) / (√(v/(1 − β₂ᵗ)) + ε)

    Args:
        masters: what is trained.
        settings: rates, decay, clipping.
        steps: of the whole run.
    """

    def __init__(self, masters: MasterWeights, settings: Settings, *, steps: int) -> None:
        self.masters, self.settings, self.steps = masters, settings, steps
        self._adam = self._fresh()
        self._ages: dict[torch.Tensor, torch.Tensor] = {}
        """Master → age of each of its numbers, float32; only of those whose numbers differ in age."""

    def _fresh(self) -> Any:
        import torch

        settings = self.settings
        return torch.optim.AdamW(
            [{"params": [group.master], "ratio": group.ratio} for group in self.masters.groups],
            lr=settings.peak_lr,
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
        if self._ages:
            for ratio, group in zip(self._adam.param_groups, self.masters.groups, strict=True):
                self._step_by_age(group, ratio["lr"], step)
        else:
            self._adam.step()
        self.masters.round()
        return lr

    def _step_by_age(self, group: ParameterGroup, lr: float, step: int) -> None:
        """One step in which every number has the bias correction of its age."""
        import torch

        master, gradient = group.master, group.master.grad
        assert gradient is not None
        if master not in self._adam.state:
            self._put(master, {name: torch.zeros_like(master) for name in MOMENTS}, step)
        kept, settings = self._adam.state[master], self.settings
        age = self._ages.setdefault(master, torch.full_like(master, float(step)))
        age.add_(1)
        kept["step"].fill_(step + 1)
        first, second = (kept[name] for name in MOMENTS)
        (beta1, beta2), decay = settings.betas, settings.weight_decay
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        if decay:
            master.mul_(1 - lr * decay)
        spread = (second / _correction(age, beta2)).sqrt_().add_(settings.eps)
        master.addcdiv_(first / _correction(age, beta1), spread, value=-lr)

    def moments(self) -> dict[str, Moments]:
        """Name → moments of every parameter, as views; empty before the first step."""
        moments = {}
        for group in self.masters.groups:
            if group.master in self._adam.state:
                flat = self._adam.state[group.master]
                first, second = (group.shaped(flat[name]) for name in MOMENTS)
                ages = self._ages.get(group.master)
                shaped = [None] * len(first) if ages is None else group.shaped(ages)
                for name, one, two, age in zip(group.names, first, second, shaped, strict=True):
                    moments[name] = Moments(first=one, second=two, age=age)
        return moments

    def rebuild(self, moments: Mapping[str, Moments], step: int) -> None:
        """Begin anew over master weights that were laid out anew.

        Args:
            moments: of parameters, by name; those that do not say their age are ``step`` steps old. Those of other
                parameters begin at 0, 0 steps old.
            step: steps done.
        """
        import torch

        self._adam, self._ages = self._fresh(), {}
        if not step:
            return
        ages = {}
        for group in self.masters.groups:
            flat = [torch.zeros_like(group.master) for _ in (*MOMENTS, "age")]
            first, second, age = (group.shaped(vector) for vector in flat)
            for index, name in enumerate(group.names):
                if name in moments:
                    own = moments[name]
                    first[index].copy_(own.first)
                    second[index].copy_(own.second)
                    age[index].copy_(torch.full((), float(step)) if own.age is None else own.age)
            self._put(group.master, dict(zip(MOMENTS, flat[:2], strict=True)), step)
            if any(bool((own != step).any()) for own in age):
                ages[group.master] = flat[2]
        self._ages = ages

    def state(self) -> dict[str, torch.Tensor]:
        """Both moments, flat, by group, and ages where they differ; empty before the first step."""
        kept = {
            f"{index}.{moment}": self._adam.state[group.master][moment]
            for index, group in enumerate(self.masters.groups)
            for moment in MOMENTS
            if group.master in self._adam.state
        }
        for index, group in enumerate(self.masters.groups):
            if group.master in self._ages:
                kept[f"{index}.age"] = self._ages[group.master]
        return kept

    def load(self, state: dict[str, torch.Tensor], step: int) -> None:
        """Take up the moments after so many steps."""
        self._adam = self._fresh()
        self._ages = {
            group.master: state[f"{index}.age"].to(group.master.device).clone()
            for index, group in enumerate(self.masters.groups)
            if f"{index}.age" in state
        }
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


def _correction(age: torch.Tensor, beta: float) -> torch.Tensor:
    """1 − βᵗ for every age t, without the rounding of a difference of nearly equal numbers."""
    return (age * math.log(beta)).expm1_().neg_() if beta else age.new_ones(())
