"""Which parameters the fall of a run's loss came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loratlas.training.run_hooks import HookedRun, RunHook, Tensors

if TYPE_CHECKING:
    import torch


class LossChangeAllocation(RunHook):
    """What each parameter's steps did to the loss, by the slope at the end of every step:

        descent = −Σ_t ⟨g_t, θ_t − θ_{t−1}⟩,    g_t = ∂L_t/∂θ at θ_t

    in nats per token, where L_t is the mean loss of the rows of step t, which the step to θ_t has not seen. Above 0 the
    steps were worth taking. A parameter that overshoots has a slope against its own step and falls below 0, and one
    that learned its rows by heart gains nothing on the next ones.

    Cost: a product of two vectors of the run's size each step; three such vectors are held.

    Args:
        after: counted steps begin behind so many: the first falls of a loss are those that any adapter could make.

    Example:
        ``descent = LossChangeAllocation(after=20); fit(model, rows, settings, hooks=[descent]); descent.values()``

    Source: loss change allocation (Lan et al. 2019, arXiv:1909.01440). Departures: one slope, at the end of a step,
    instead of an average along it, so that it costs no pass of its own; that of the run's own next rows instead of the
    whole training set.
    """

    name = "loss_change"

    def __init__(self, *, after: int = 0) -> None:
        self.after = after
        self.steps = 0
        self._names: list[list[str]] = []
        self._before: list[torch.Tensor] = []
        self._sums: list[torch.Tensor] = []
        self._shaped: list[list[torch.Tensor]] = []

    def identity(self) -> dict[str, Any]:
        return {"after": self.after}

    def on_gradient(self, run: HookedRun) -> None:
        masters = run.masters
        if not self.steps:
            self._begin(run)
        elif self.steps < self.after:
            for group, before in zip(masters.groups, self._before, strict=True):
                before.copy_(group.master)
        else:
            for group, before, total in zip(masters.groups, self._before, self._sums, strict=True):
                assert group.master.grad is not None
                total.addcmul_(group.master.grad, before.sub_(group.master))
                before.copy_(group.master)
        self.steps += 1

    def _begin(self, run: HookedRun) -> None:
        import torch

        groups = run.masters.groups
        self._names = [group.names for group in groups]
        self._sums = [torch.zeros_like(group.master) for group in groups]
        self._shaped = [group.shaped(total) for group, total in zip(groups, self._sums, strict=True)]
        self._before = run.masters.copy()

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        flat = {f"sum.{index}": total for index, total in enumerate(self._sums)}
        flat |= {f"before.{index}": before for index, before in enumerate(self._before)}
        return flat, {"steps": self.steps}

    def load_state(self, run: HookedRun, tensors: Tensors, values: dict[str, Any]) -> None:
        self.steps = int(values["steps"])
        if self.steps:
            self._begin(run)
            for index, (total, before) in enumerate(zip(self._sums, self._before, strict=True)):
                total.copy_(tensors[f"sum.{index}"])
                before.copy_(tensors[f"before.{index}"])

    def values(self) -> dict[str, float]:
        """Parameter's name → its descent, nats per token; empty before the first step."""
        import torch

        return {
            name: float(own.sum(dtype=torch.float64))
            for names, sums in zip(self._names, self._shaped, strict=True)
            for name, own in zip(names, sums, strict=True)
        }
