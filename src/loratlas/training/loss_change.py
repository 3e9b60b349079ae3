"""Which parameters the fall of a run's loss came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from loratlas.training.master_weights import MasterWeights


class LossChangeAllocation:
    """What each parameter's steps did to the loss, by the slope at the end of every step:

        descent = −Σ_t ⟨g_t, θ_t − θ_{t−1}⟩,    g_t = ∂L_t/∂θ at θ_t

    in nats per token, where L_t is the mean loss of the rows of step t, which the step to θ_t has not seen. Above 0 the
    steps were worth taking. A parameter that overshoots has a slope against its own step and falls below 0, and one
    that learned its rows by heart gains nothing on the next ones.

    Cost: a product of two vectors of the run's size each step; three such vectors are held.

    Args:
        after: counted steps begin behind so many: the first falls of a loss are those that any adapter could make.

    Example:
        ``descent = LossChangeAllocation(after=20); fit(model, rows, settings, on_gradient=descent); descent.values()``

    Source: loss change allocation (Lan et al. 2019, arXiv:1909.01440). Departures: one slope, at the end of a step,
    instead of an average along it, so that it costs no pass of its own; that of the run's own next rows instead of the
    whole training set.
    """

    def __init__(self, *, after: int = 0) -> None:
        self.after = after
        self.steps = 0
        self._names: list[list[str]] = []
        self._before: list[torch.Tensor] = []
        self._sums: list[torch.Tensor] = []
        self._shaped: list[list[torch.Tensor]] = []
        self._pending: dict[str, torch.Tensor] = {}

    def _prepare(self, masters: MasterWeights) -> None:
        """Lay out the sums as the masters are."""
        import torch

        self._names = [group.names for group in masters.groups]
        self._sums = [torch.zeros_like(group.master) for group in masters.groups]
        self._shaped = [group.shaped(total) for group, total in zip(masters.groups, self._sums, strict=True)]
        self._before = masters.copy()
        for name, kept in self.state().items():
            if name in self._pending:
                kept.copy_(self._pending[name])
        self._pending = {}

    def __call__(self, masters: MasterWeights) -> None:
        """Take in a step whose gradient is in the masters, before it is used."""
        if not self._sums:
            self._prepare(masters)
        if not self.steps:
            pass  # no step has been made yet
        elif self.steps < self.after:
            for group, before in zip(masters.groups, self._before, strict=True):
                before.copy_(group.master)
        else:
            for group, before, total in zip(masters.groups, self._before, self._sums, strict=True):
                assert group.master.grad is not None
                total.addcmul_(group.master.grad, before.sub_(group.master))
                before.copy_(group.master)
        self.steps += 1

    def state(self) -> dict[str, torch.Tensor]:
        """What `load_state` goes on from; with `steps`, after any step."""
        pairs = (("sum", self._sums), ("before", self._before))
        return {f"{name}.{index}": kept for name, all_of in pairs for index, kept in enumerate(all_of)}

    def load_state(self, state: Mapping[str, torch.Tensor], *, steps: int) -> None:
        """Go on from what `state` gave after so many steps, at the next step that is shown."""
        self.steps, self._pending = steps, dict(state)

    def values(self) -> dict[str, float]:
        """Parameter's name → its descent, nats per token; empty before the first step."""
        import torch

        return {
            name: float(part.sum(dtype=torch.float64))
            for names, parts in zip(self._names, self._shaped, strict=True)
            for name, part in zip(names, parts, strict=True)
        }
