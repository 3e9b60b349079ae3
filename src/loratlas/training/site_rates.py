"""Learning rates of single sites, decided by the curvature that a run's own steps have met.

Sites whose gradient turns quickly along their own steps overshoot at a rate that others could well take. In the head of
a run the secant curvature of every site is measured, over both factors together,

    h = Σ_t ⟨g_t − g_{t−1}, θ_t − θ_{t−1}⟩ / Σ_t ‖θ_t − θ_{t−1}‖²

and from there on a site's steps are the run's times

    f = (h̃ / h)^½, at least 1/`WIDEST` and at most `WIDEST`, over the geometric mean of all sites

with h̃ the median over the sites. Gradients of two steps are of different rows, so that h holds their noise as well:
sites with noisy gradients are slowed down too. A site whose h is not above 0 met no curvature and is given `WIDEST`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING, Any

from loratlas.errors import SettingsError
from loratlas.training.run_hooks import HookedRun, RunHook, Tensors

if TYPE_CHECKING:
    import torch

    from loratlas.training.run_events import StepEvent
    from loratlas.training.settings import Settings

WIDEST = 4.0
"""Most that a site's rate may differ from the run's, before all are divided by their mean."""

FEWEST = 4
"""Steps that curvatures are measured over at least."""

SHARE = 0.1
"""Of the run's steps, in which curvatures are measured."""


def site_of(name: str) -> str:
    """The module that a parameter adapts; of others the parameter itself.

    >>> site_of("base_model.model.layers.0.mlp.up_proj.lora_A.default.weight")
    'base_model.model.layers.0.mlp.up_proj'
    """
    return name.partition(".lora_")[0]


def factors_of(curvatures: Mapping[str, float]) -> dict[str, float]:
    """Site → factor of its rate.

    Args:
        curvatures: h of every site.

    >>> {site: round(factor, 3) for site, factor in factors_of({"a": 1.0, "b": 4.0, "c": 16.0}).items()}
    {'a': 2.0, 'b': 1.0, 'c': 0.5}
    """
    positive = [h for h in curvatures.values() if h > 0]
    if not positive:
        return dict.fromkeys(curvatures, 1.0)
    middle = median(positive)
    raw = {
        site: WIDEST if h <= 0 else min(max(math.sqrt(middle / h), 1 / WIDEST), WIDEST)
        for site, h in curvatures.items()
    }
    centre = math.exp(sum(math.log(factor) for factor in raw.values()) / len(raw))
    return {site: factor / centre for site, factor in raw.items()}


class CurvatureRates(RunHook):
    """Measures every site's curvature in the first steps of a run, and lets each go on at a rate of its own.

    A step at factor f is θ ← θ₀ + f (θ₁ − θ₀), with θ₁ what the optimizer made of θ₀: exactly AdamW at f times the
    rate, its decay included. Cost: three products of vectors of the run's size a step in the head, one afterwards; two
    such vectors are held.

    Args:
        head: steps that are measured.

    Attributes:
        factors: site → factor, once the head is over.

    Example:
        ``fit(model, rows, Settings(steps=300, site_rates="curvature"))``
    """

    name = "site_rates"

    def __init__(self, head: int) -> None:
        self.head = max(head, FEWEST)
        self.factors: dict[str, float] = {}
        self._before: list[torch.Tensor] = []
        self._gradients: list[torch.Tensor] = []
        self._sums: dict[str, list[float]] = {}

    def identity(self) -> dict[str, Any]:
        return {"head": self.head}

    def on_gradient(self, run: HookedRun) -> None:
        groups = run.masters.groups
        if run.counters.done == 0:
            self._sums, self._gradients, self.factors = {}, [], {}
        if not self.factors and self._fits(self._gradients, run) and self._gradients:
            for group, before, gradient in zip(groups, self._before, self._gradients, strict=True):
                assert group.master.grad is not None
                step, turn = group.master - before, group.master.grad - gradient
                for name, own, other in zip(group.names, group.shaped(step), group.shaped(turn), strict=True):
                    sums = self._sums.setdefault(site_of(name), [0.0, 0.0])
                    sums[0] += float((own * other).sum())
                    sums[1] += float((own * own).sum())
        if not self.factors:
            self._gradients = [group.master.grad.clone() for group in groups if group.master.grad is not None]
        self._before = run.masters.copy()

    def after_step(self, run: HookedRun, event: StepEvent) -> None:
        if self.factors:
            self._scale(run)
        elif event.step >= self.head:
            curvatures = {site: turned / moved for site, (turned, moved) in self._sums.items() if moved > 0}
            self.factors = factors_of(curvatures) or {"": 1.0}
            self._gradients = []

    def _scale(self, run: HookedRun) -> None:
        """Lengthen or shorten every site's part of the step that was just taken."""
        if not self._fits(self._before, run):
            return  # parameters changed after this step
        for group, before in zip(run.masters.groups, self._before, strict=True):
            for name, now, was in zip(
                group.names, group.shaped(group.master), group.shaped(before), strict=True
            ):
                factor = self.factors.get(site_of(name), 1.0)
                if factor != 1.0:
                    now.sub_(was).mul_(factor).add_(was)
        run.masters.round()

    @staticmethod
    def _fits(kept: list[torch.Tensor], run: HookedRun) -> bool:
        """Whether vectors are laid out as the run's weights are now."""
        return [value.shape for value in kept] == [group.master.shape for group in run.masters.groups]

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        if self.factors:
            return {}, {"factors": self.factors, "sums": self._sums}
        tensors = {f"before.{index}": value for index, value in enumerate(self._before)}
        tensors |= {f"gradient.{index}": value for index, value in enumerate(self._gradients)}
        return tensors, {"factors": self.factors, "sums": self._sums}

    def load_state(self, run: HookedRun, tensors: Tensors, values: dict[str, Any]) -> None:
        device = run.masters.groups[0].master.device
        self.factors = dict(values["factors"])
        self._sums = {site: list(sums) for site, sums in values["sums"].items()}
        self._before, self._gradients = (
            [
                tensors[f"{kind}.{index}"].to(device, copy=True)
                for index in range(sum(name.startswith(f"{kind}.") for name in tensors))
            ]
            for kind in ("before", "gradient")
        )


def site_rate_hooks(settings: Settings, steps: int) -> tuple[RunHook, ...]:
    """What gives sites rates of their own in a run of so many steps, if the settings ask for it.

    Raises:
        SettingsError: the run is over before curvatures are known.
    """
    if settings.site_rates == "equal":
        return ()
    head = max(FEWEST, round(SHARE * steps))
    if head >= steps:
        raise SettingsError(
            given=f"--site-rates {settings.site_rates} with {steps} steps",
            found=f"curvatures are measured in the first {head}",
            instead=f"a run of at least {10 * FEWEST} steps, or --site-rates equal",
        )
    return (CurvatureRates(head),)
