"""The moments of torch's Adam and AdamW when parameters are replaced by ones of another rank.

torch counts steps per parameter. A parameter that is new begins at 0 by itself. One that was lengthened has directions
of unlike ages; its count is that of the eldest, and what the step does to it is done once more with the bias correction
of each direction's own age t:

    θ ← (1 − η λ) θ₀ − η (m/(1 − β₁ᵗ)) / (√(v/(1 − β₂ᵗ)) + ε)

θ₀ being the parameter before the step, λ the decoupled decay (0 for Adam, whose decay is in its gradient).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from loratlas.adapters.adam_moments import Moments
from loratlas.errors import SettingsError

if TYPE_CHECKING:
    import torch

MOMENTS = ("exp_avg", "exp_avg_sq")


def plain_optimizer(optimizer: Any) -> Any:
    """The torch optimizer inside accelerate's wrapper."""
    from accelerate.optimizer import AcceleratedOptimizer

    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer


def check_optimizer(optimizer: Any) -> None:
    """Refuse an optimizer whose memory of its parameters cannot be moved to others.

    Raises:
        SettingsError: it is not torch's Adam or AdamW, or with options that keep more than two moments.
    """
    import torch

    kind = type(optimizer)
    if kind not in (torch.optim.Adam, torch.optim.AdamW):
        raise SettingsError(
            given="DynamicPlacement in a trainer",
            found=f"the optimizer {kind.__module__}.{kind.__name__}, whose state of a parameter cannot be carried "
            "over to one of another rank",
            instead='optim="adamw_torch", or torch.optim.AdamW in optimizers',
        )
    for group in optimizer.param_groups:
        if group.get("amsgrad") or group.get("maximize"):
            raise SettingsError(
                given="DynamicPlacement in a trainer",
                found=f"{kind.__name__} with {'amsgrad' if group.get('amsgrad') else 'maximize'}",
                instead=f"torch.optim.{kind.__name__} without it",
            )


class MovedAdam:
    """An Adam or AdamW whose parameters can be replaced.

    Args:
        optimizer: torch's own; `check_optimizer` has seen it.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.ages: dict[torch.Tensor, torch.Tensor] = {}
        """Parameter → age of each of its directions, of a shape that broadcasts; of those of unlike ages."""
        self._before: dict[torch.Tensor, tuple[torch.Tensor, float]] = {}
        self._hooks = [
            optimizer.register_step_pre_hook(lambda *_: self._keep()),
            optimizer.register_step_post_hook(lambda *_: self._correct()),
        ]

    def detach(self) -> None:
        """Take no further part in steps."""
        for hook in self._hooks:
            hook.remove()

    def moments(self, named: Mapping[str, torch.Tensor]) -> dict[str, Moments]:
        """Name → moments, float32, of parameters that have any."""
        import torch

        known = {}
        for name, parameter in named.items():
            kept = self.optimizer.state.get(parameter)
            if kept:
                age = self.ages.get(parameter)
                known[name] = Moments(
                    first=kept["exp_avg"].float(),
                    second=kept["exp_avg_sq"].float(),
                    age=torch.full((1, 1), float(kept["step"])) if age is None else age,
                )
        return known

    def replace(
        self,
        before: Mapping[str, torch.Tensor],
        after: Mapping[str, torch.Tensor],
        moments: Mapping[str, Moments],
    ) -> None:
        """Take up other parameters; rates, schedules and counts of what stays stay.

        Args:
            before, after: name → trainable parameter, in the model's order.
            moments: of new parameters; those without begin as ever.
        """
        groups = self.optimizer.param_groups
        index = {id(p): number for number, group in enumerate(groups) for p in group["params"]}
        known = {name: index[id(p)] for name, p in before.items() if id(p) in index}
        usual = {kind: _usual(known, kind) for kind in (".lora_A.", ".lora_B.")}
        for name, parameter in before.items():
            if after.get(name) is not parameter:
                self.optimizer.state.pop(parameter, None)
                self.ages.pop(parameter, None)
        members: list[list[torch.Tensor]] = [[] for _ in groups]
        for name, parameter in after.items():
            own = known.get(name)
            if own is None and before.get(name) is None:
                own = usual[".lora_B." if ".lora_B." in name else ".lora_A."]
            if own is not None:
                # In the model's order, as a trainer that begins from a checkpoint lists them.
                members[own].append(parameter)
        for group, own in zip(groups, members, strict=True):
            group["params"] = own
        for name, kept in moments.items():
            self._put(after[name], kept)

    def _put(self, parameter: torch.Tensor, moments: Moments) -> None:
        assert moments.age is not None  # `moments` above gave every one its own
        age = moments.age.to(parameter.device)
        eldest = float(age.max())
        if bool((age != eldest).any()):
            self.ages[parameter] = age.float()
        self.optimizer.state[parameter] = {
            "step": self._count(parameter, eldest),
            "exp_avg": moments.first.to(parameter).contiguous(),
            "exp_avg_sq": moments.second.to(parameter).contiguous(),
        }

    def _count(self, parameter: torch.Tensor, steps: float) -> torch.Tensor:
        import torch

        group = self._group(parameter)
        device = parameter.device if group.get("fused") or group.get("capturable") else "cpu"
        return torch.tensor(steps, dtype=torch.float32, device=device)

    def _group(self, parameter: torch.Tensor) -> dict[str, Any]:
        return next(
            group for group in self.optimizer.param_groups if any(own is parameter for own in group["params"])
        )

    def _keep(self) -> None:
        """Before a step: parameters that it will be done once more for."""
        self._before = {
            parameter: (parameter.detach().clone(), float(self.optimizer.state[parameter]["step"]))
            for parameter in self.ages
            if parameter.grad is not None
        }

    def _correct(self) -> None:
        """After a step: the same with everybody's own age."""
        import torch

        with torch.no_grad():
            for parameter, (before, steps) in self._before.items():
                kept = self.optimizer.state[parameter]
                if float(kept["step"]) == steps:  # a step that the gradient scaler has skipped
                    continue
                group = self._group(parameter)
                age = self.ages[parameter].add_(1)
                beta1, beta2 = (float(beta) for beta in group["betas"])
                rate = float(group["lr"])
                decoupled = group.get("decoupled_weight_decay", isinstance(self.optimizer, torch.optim.AdamW))
                value = before.float() * (1 - rate * group["weight_decay"] if decoupled else 1)
                first, second = (kept[name].float() for name in MOMENTS)
                spread = (second / (1 - beta2**age)).sqrt_().add_(group["eps"])
                parameter.copy_(value.addcdiv_(first / (1 - beta1**age), spread, value=-rate))
        self._before = {}


def _usual(known: Mapping[str, int], kind: str) -> int:
    """The group that most factors of a kind are in."""
    own = [number for name, number in known.items() if kind in name] or list(known.values())
    return max(own, key=own.count)
