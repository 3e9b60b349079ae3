"""What takes part in a run between its steps: looks at gradients, moments and weights, changes what is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch

    from loratlas.adapters.adam_moments import Moments
    from loratlas.data.examples import Encoded
    from loratlas.training.master_weights import MasterWeights
    from loratlas.training.optimizer import Optimizer
    from loratlas.training.run_counters import RunCounters
    from loratlas.training.run_events import StepEvent
    from loratlas.training.settings import Settings

Tensors = dict[str, "torch.Tensor"]


class HookedRun(Protocol):
    """What a `loratlas.training.run.RunState` shows to its hooks.

    Attributes:
        model: a `PeftModel`; in a fleet the bare base.
        settings: of the run.
        steps: of the whole run.
        masters: float32 weights and gradients, by name.
        optimizer: steps on them; moments by name.
        counters: steps done, losses, tokens.
        data: encoded rows. order: of every step, [steps, batch size]. packed: whether they are packed.
        set_aside: steps taken besides these, at learning rates that did not go on.
    """

    model: Any
    data: Encoded
    order: np.ndarray
    packed: bool
    settings: Settings
    steps: int
    masters: MasterWeights
    optimizer: Optimizer
    counters: RunCounters
    set_aside: int

    def set_rate(self, lr: float) -> None:
        """See `loratlas.training.run.RunState.set_rate`."""

    def change_parameters(self, change: Callable[[], Mapping[str, Moments] | None]) -> None:
        """See `loratlas.training.run.RunState.change_parameters`."""


class RunHook:
    """Called by a `loratlas.training.run.RunState` at fixed points of every step; every method may be left as it is.

    A step: the gradient is taken → `on_gradient` → clipping, update, rounding → `after_step` → checkpoint, if one is
    due. A hook reads and changes what the run shows it: `HookedRun`; ranks and sites only through
    its `change_parameters`.
    What a hook keeps from step to step belongs into its `state`, or a resumed run differs from one that was not
    interrupted (law 5).

    Attributes:
        name: of its state in the checkpoint; no two hooks of a run share one.

    Example:
        >>> class Norms(RunHook):
        ...     name = "norms"
        ...     def __init__(self):
        ...         self.seen = []
        ...     def on_gradient(self, run):
        ...         self.seen.append(float(run.masters.norm()))
        ...     def state(self):
        ...         return {}, {"seen": self.seen}
        ...     def load_state(self, run, tensors, values):
        ...         self.seen = values["seen"]
    """

    name = ""

    def identity(self) -> dict[str, Any]:
        """Plain data that decide what the hook does; only a run whose hooks say the same goes on from a checkpoint."""
        return {}

    def first_change(self, steps: int) -> int | None:
        """The first step of a run of so many after which the hook may change what is trained; None: it never does.

        Learning rates that share the head of a run (`loratlas.training.rate_search`) go back to its beginning, so that
        they are decided before.
        """
        return None

    def on_gradient(self, run: HookedRun) -> None:
        """The step's gradient is whole in ``run.masters``, not clipped and not used yet."""

    def after_step(self, run: HookedRun, event: StepEvent) -> None:
        """The step is done and counted; the last moment at which the run's parameters may change before the next."""

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """Tensors, and plain data, that a resumed run needs."""
        return {}, {}

    def load_state(self, run: HookedRun, tensors: Tensors, values: dict[str, Any]) -> None:
        """Continue from what `state` gave, whatever the hook has gathered since: the state before the first step makes
        it forget. The run's weights and moments are loaded afterwards: a hook that had changed which parameters there
        are changes them again here."""
