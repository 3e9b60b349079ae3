"""What a run's own steps say about every site, from the gradients and weights that it has anyway.

Of every step, for each site (its two factors θ taken together, g their gradient, Δ_t = θ_{t+1} − θ_t):

    descent_t   = −⟨g_{t+1}, Δ_t⟩                       the loss's fall by this step, at the slope of its end
    curvature_t = ⟨g_{t+1} − g_t, Δ_t⟩ / ‖Δ_t‖²          secant curvature along it
    sensitivity = |θ g|, its decayed mean and spread     only for rules that ask for it

and at a decision energy = ‖s (B A − B₀ A₀)‖²_F, over all steps since the last one and over either half of them.

Memory: three copies of the trained weights and one of their gradient, five with sensitivities. Cost: a few products
of such vectors a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loratlas.dynamic.run_evidence import Measured
from loratlas.training.run_hooks import HookedRun, Tensors

if TYPE_CHECKING:
    import torch

BETA = 0.85
"""Decay of sensitivities and of their spread, as AdaLoRA has it."""


@dataclass(frozen=True, slots=True)
class Factors:
    """Where a site's adapter is.

    Args:
        A, B: parameters' names.
        scale: s of ΔW = s B A.
    """

    A: str
    B: str
    scale: float


def factors_of(model: Any, modules: Mapping[str, str]) -> dict[str, Factors]:
    """Path → factors, of the sites that carry an adapter.

    Args:
        model: a `PeftModel`.
        modules: path → module's name in the bare model.
    """
    from loratlas.adapters.peft_targets import adapted

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    layers = adapted(model)
    factors = {}
    for path, module in modules.items():
        layer = layers.get(path, layers.get(module))
        if layer is not None:
            (adapter,) = layer.lora_A
            a, b = (names[id(kind[adapter].weight)] for kind in (layer.lora_A, layer.lora_B))
            factors[path] = Factors(a, b, float(layer.scaling[adapter]))
    return factors


@dataclass(slots=True)
class _Window:
    """Numbers of the steps since the last decision: one row a step, one column a site."""

    descent: list[list[float]] = field(default_factory=list)
    slope: list[list[float]] = field(default_factory=list)  # ⟨Δg, Δθ⟩
    length: list[list[float]] = field(default_factory=list)  # ‖Δθ‖²


class SiteStatistics:
    """Collects statistics between two decisions.

    Args:
        modules: path → module's name, of all sites that may carry an adapter.
        sensitivity: whether |θ g| is followed too.
    """

    def __init__(self, modules: Mapping[str, str], *, sensitivity: bool = False) -> None:
        self.modules, self.sensitivity = dict(modules), sensitivity
        self.factors: dict[str, Factors] = {}
        self.seen = 0
        self._half = 0
        self._window = _Window()
        self._flat: dict[str, list[torch.Tensor]] = {}
        """Vectors laid out as the masters: start, middle, before (weights), slope (gradient), mean, spread."""

    def begin(self, run: HookedRun, steps: int) -> None:
        """Forget everything; so many steps are to come before the next decision."""
        self.factors = factors_of(run.model, self.modules)
        self.seen, self._half, self._window = 0, steps // 2, _Window()
        self._flat = {"start": run.masters.copy()}

    def on_gradient(self, run: HookedRun) -> None:
        """Take in a step's gradient, at the weights that the step before has led to."""
        gradients = _gradients(run)
        if self.seen:
            self._row(run, gradients)
        if self.seen == self._half:
            self._flat["middle"] = run.masters.copy()
        self._flat["before"] = run.masters.copy()
        self._flat["slope"] = [gradient.clone() for gradient in gradients]
        if self.sensitivity:
            self._follow(run, gradients)
        self.seen += 1

    def _row(self, run: HookedRun, gradients: Sequence[torch.Tensor]) -> None:
        import torch

        rows = []
        steps = [g.master - b for g, b in zip(run.masters.groups, self._flat["before"], strict=True)]
        slopes = [g - b for g, b in zip(gradients, self._flat["slope"], strict=True)]
        for one, two in ((gradients, steps), (slopes, steps), (steps, steps)):
            rows.append(self._by_site(run, [a * b for a, b in zip(one, two, strict=True)]))
        descent, slope, length = torch.stack(rows).tolist()
        self._window.descent.append([-value for value in descent])
        self._window.slope.append(slope)
        self._window.length.append(length)

    def _by_site(self, run: HookedRun, flat: Sequence[torch.Tensor]) -> torch.Tensor:
        """Sums over either site's two factors, [sites], float64."""
        import torch

        sums = {
            name: view.sum(dtype=torch.float64)
            for group, vector in zip(run.masters.groups, flat, strict=True)
            for name, view in zip(group.names, group.shaped(vector), strict=True)
        }
        return torch.stack([sums[own.A] + sums[own.B] for own in self.factors.values()])

    def _follow(self, run: HookedRun, gradients: Sequence[torch.Tensor]) -> None:
        import torch

        values = [
            (g.master * gradient).abs_() for g, gradient in zip(run.masters.groups, gradients, strict=True)
        ]
        if "mean" not in self._flat:
            for name in ("mean", "spread"):
                self._flat[name] = [torch.zeros_like(value) for value in values]
        for value, mean, spread in zip(values, self._flat["mean"], self._flat["spread"], strict=True):
            mean.lerp_(value, 1 - BETA)
            spread.lerp_((value - mean).abs_(), 1 - BETA)

    def measured(self, run: HookedRun) -> dict[str, Measured]:
        """Energy, descent and curvature, by site."""
        now = _shaped(run, run.masters.copy())
        start = _shaped(run, self._flat["start"])
        middle = _shaped(run, self._flat.get("middle", self._flat["start"]))

        def energy(end: Mapping[str, torch.Tensor], begin: Mapping[str, torch.Tensor]) -> dict[str, float]:
            return {
                path: own.scale**2 * _distance(end[own.A], end[own.B], begin[own.A], begin[own.B])
                for path, own in self.factors.items()
            }

        rows = self._window.descent[len(self._window.descent) // 2 :]
        return {
            "energy": Measured(
                whole=energy(now, start), first=energy(middle, start), second=energy(now, middle)
            ),
            "descent": Measured(
                whole=self._summed(rows), first=self._summed(rows[::2]), second=self._summed(rows[1::2])
            ),
            "curvature": Measured(
                whole=self._curved(slice(None)),
                first=self._curved(slice(None, None, 2)),
                second=self._curved(slice(1, None, 2)),
            ),
        }

    def _summed(self, rows: Sequence[Sequence[float]]) -> dict[str, float]:
        return {path: sum(row[i] for row in rows) for i, path in enumerate(self.factors)}

    def _curved(self, steps: slice) -> dict[str, float]:
        slope, length = self._summed(self._window.slope[steps]), self._summed(self._window.length[steps])
        return {path: slope[path] / length[path] for path in slope if length[path] > 0}

    def directions(self, run: HookedRun) -> dict[str, dict[str, list[float]]]:
        """What published rules ask of every direction: Ī Ū, and Ī over Ū; means over its row of A, and its column of B,
        added."""
        if "mean" not in self._flat:
            return {}
        mean, spread = _shaped(run, self._flat["mean"]), _shaped(run, self._flat["spread"])
        by_signal: dict[str, dict[str, list[float]]] = {"sensitivity": {}, "certainty": {}}
        for path, own in self.factors.items():
            for name, joined in (("sensitivity", _product), ("certainty", _ratio)):
                rows = joined(mean[own.A], spread[own.A]).mean(1)
                columns = joined(mean[own.B], spread[own.B]).mean(0)
                by_signal[name][path] = (rows + columns).tolist()
        return by_signal

    def spectra(self, run: HookedRun) -> dict[str, list[float]]:
        """Singular values of every site's ΔW, falling."""
        import torch

        views = dict(run.masters.named())
        by_site = {}
        for path, own in self.factors.items():
            a, b = views[own.A].double(), views[own.B].double()
            core = torch.linalg.qr(b, mode="r").R @ torch.linalg.qr(a.t(), mode="r").R.t()
            by_site[path] = (own.scale * torch.linalg.svdvals(core)).tolist()
        return by_site

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """As of a hook."""
        tensors = {f"{name}.{i}": v for name, flat in self._flat.items() for i, v in enumerate(flat)}
        window = self._window
        values = {
            "seen": self.seen,
            "half": self._half,
            "window": [window.descent, window.slope, window.length],
        }
        return tensors, values

    def load_state(self, run: HookedRun, tensors: Tensors, values: dict[str, Any]) -> None:
        """As of a hook; the model has its ranks already."""
        self.factors = factors_of(run.model, self.modules)
        self.seen, self._half, self._window = values["seen"], values["half"], _Window(*values["window"])
        groups = len(run.masters.groups)
        names = {key.rpartition(".")[0] for key in tensors}
        self._flat = {
            name: [
                tensors[f"{name}.{i}"].to(run.masters.groups[i].master.device).clone() for i in range(groups)
            ]
            for name in names
        }


def _product(mean: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    return mean * spread


def _ratio(mean: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    return (mean + 1e-6) / (spread + 1e-6)


def _gradients(run: HookedRun) -> list[torch.Tensor]:
    gradients = [group.master.grad for group in run.masters.groups]
    return [gradient for gradient in gradients if gradient is not None]


def _shaped(run: HookedRun, flat: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: view
        for group, vector in zip(run.masters.groups, flat, strict=True)
        for name, view in zip(group.names, group.shaped(vector), strict=True)
    }


def _distance(A: torch.Tensor, B: torch.Tensor, A0: torch.Tensor, B0: torch.Tensor) -> float:
    """‖B A − B₀ A₀‖²_F without a product of the weight's size: [B, −B₀] [A; A₀] has twice the rank."""
    import torch

    left = torch.cat([B, -B0], 1).double()
    right = torch.cat([A, A0], 0).double()
    return max(float(((left.t() @ left) * (right @ right.t())).sum()), 0.0)
