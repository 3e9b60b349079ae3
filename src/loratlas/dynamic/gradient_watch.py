"""The gradient of frozen weights, sketched in some of a run's own steps: where an adapter would help, and which
directions it should begin with.

A sketch needs what a site reads and the gradient at what it gives, both of which the step has anyway. It is taken in
every so manyth step, so that it costs at most `SHARE` of a step's arithmetic on average:

    share = Σ 2 (k + l)(d_in + d_out) / Σ 4 d_in d_out,     every = ⌈share / SHARE⌉
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from loratlas.anatomy.sites import Site
from loratlas.dynamic.peers import Peers
from loratlas.dynamic.run_evidence import Measured
from loratlas.modeling import unwrap
from loratlas.signals.base import ALL_FOLDS, FoldSums, Use
from loratlas.signals.gradient import Gradient
from loratlas.training.run_hooks import Tensors

if TYPE_CHECKING:
    import torch

SHARE = 0.03
RANK = 2
"""Directions that a site's score adds up; twice as many are known."""


class GradientWatch:
    """Sketches the gradients of sites in some steps.

    Args:
        modules: path → module's name, of all sites that may carry an adapter.
        sites: of these paths.
        seed: of the sketch's random matrices.
    """

    def __init__(self, sites: tuple[Site, ...], modules: Mapping[str, str], *, seed: int) -> None:
        self._sites = tuple(site for site in sites if site.kind in ("linear", "conv1d"))
        self._modules = dict(modules)
        self._signal = Gradient(seed=seed, rank=RANK)
        self._signal.begin(None, self._sites)
        self._hooks: list[Any] = []
        self.samples = 0
        sketch = sum(8 * RANK * 2 * (site.shape[0] + site.shape[1]) for site in self._sites)
        step = sum(4 * site.shape[0] * site.shape[1] for site in self._sites)
        self.every = max(1, math.ceil(sketch / step / SHARE)) if step else 1

    def due(self, step: int) -> bool:
        """Whether the step after so many is one to be sketched."""
        return step % self.every == 0

    def begin(self) -> None:
        """Forget everything."""
        self._signal.begin(None, self._sites)
        self.samples = 0

    def attach(self, model: Any) -> None:
        """Watch the next step. Compiled layers, whose inside cannot be watched, are left alone."""
        base = unwrap(model)
        if any(module._compiled_call_impl is not None for module in base.modules()):
            return
        self._signal.fold = self.samples % 2
        for site in self._sites:
            module = base.get_submodule(self._modules[site.path])
            self._hooks.append(module.register_forward_hook(self._watcher(site)))

    def detach(self) -> None:
        """End of the step."""
        if self._hooks:
            self._signal.counted[self._signal.fold] += 1  # gradients are of a step's mean loss
            self.samples += 1
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _watcher(self, site: Site) -> Any:
        def watch(_module: Any, inputs: tuple[Any, ...], output: Any) -> None:
            if not output.requires_grad:
                return
            x = inputs[0].detach()

            def learn(g: torch.Tensor) -> None:
                import torch

                with torch.no_grad():
                    use = Use(site=site, expert=0, x=x.flatten(0, -2), owner=None)
                    self._signal.learn(use, g.detach().flatten(0, -2))

            output.register_hook(learn)

        return watch

    def average(self, peers: Peers) -> None:
        """Make the sketches those of the mean gradient over all processes of the run."""
        import torch

        if peers.alone or not self.samples:
            return
        for sums in (self._signal.Y, self._signal.W):
            kept = sums.state()
            whole = {}
            for site in self._sites:
                for fold in range(2):
                    name = f"{fold} 0 {site.path}"
                    own = kept.get(name)
                    # A site that this process has not used still takes part: others may have.
                    value = torch.zeros(self._shape(site, sums), device=peers.device) if own is None else own
                    mean = peers.mean(value)
                    if bool(mean.any()):
                        whole[name] = mean
            sums.load_state(whole)
        for site in self._sites:
            self._signal.prepare((site.path, 0), site.shape, torch.empty(0, device=peers.device))

    def _shape(self, site: Site, sums: FoldSums) -> tuple[int, int]:
        k, rows = self._signal.sizes(site.shape)
        return (site.shape[0], k) if sums is self._signal.Y else (rows, site.shape[1])

    def measured(self) -> Measured | None:
        """`gradient` of every site, from all samples and from either half; None where fewer than two were taken."""
        if self.samples < 2:
            return None
        whole, first, second = (self._signal.values(folds)["gradient"] for folds in (ALL_FOLDS, (0,), (1,)))
        return Measured(whole=whole, first=first, second=second)

    def directions(self) -> dict[str, torch.Tensor]:
        """Path → [k, d_in], directions of the input to begin with, best first."""
        inputs = {site.path: self._signal.inputs((site.path, 0)) for site in self._sites}
        return {path: rows for path, rows in inputs.items() if rows is not None}

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """As of a hook."""
        tensors = {f"Y {name}": value for name, value in self._signal.Y.state().items()}
        tensors |= {f"W {name}": value for name, value in self._signal.W.state().items()}
        return tensors, {"samples": self.samples, "counted": list(self._signal.counted)}

    def load_state(self, tensors: Tensors, values: dict[str, Any], like: torch.Tensor) -> None:
        """As of a hook.

        Args:
            tensors, values: of `state`.
            like: a tensor on the device of the run, in the numbers that its base computes in.
        """
        self.begin()
        self.samples, self._signal.counted = values["samples"], list(values["counted"])
        for sums, letter in ((self._signal.Y, "Y "), (self._signal.W, "W ")):
            kept = {
                k.removeprefix(letter): v.to(like.device) for k, v in tensors.items() if k.startswith(letter)
            }
            sums.load_state(kept)
        for site in self._sites:
            self._signal.prepare((site.path, 0), site.shape, like)
