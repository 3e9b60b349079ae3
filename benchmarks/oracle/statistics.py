"""What the published rules look at, measured on calibration rows of the training file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from loratlas.anatomy.sites import Site
from loratlas.data.batches.batch import Batch
from loratlas.signals.base import Signal

BATCHES, ROWS = 8, 8
"""Calibration batches (FIM-LoRA's eight) and rows of each."""

PROJECTED = 4
"""Rank of the A that gradients are projected with."""

BRIEF = 20
"""Steps of the training that LoRA-drop looks at."""

GORA_STEP = 0.05
"""γ of GoRA's start: the length of the step of gradient descent that it imitates."""


def calibration(rows: Any, *, seed: int, packed: bool) -> list[Batch]:
    """The first `BATCHES` batches of the order that a run with this seed has."""
    from loratlas.data.batches.batching import collate, training_order

    order = training_order(len(rows), steps=BATCHES, batch_size=ROWS, seed=seed)
    return [
        collate([rows.examples[i] for i in chosen], packed=packed, pad_id=rows.pad_id, rows=chosen.tolist())
        for chosen in order
    ]


def gradients(
    model: Any, sites: Sequence[Site], batches: Sequence[Batch], *, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Statistics of the weights' own gradients of the mean loss.

    Args:
        model: the bare base. sites: where. batches: calibration rows. seed: draws A.

    Returns:
        ``importance`` mean|W ⊙ Ḡ|, ``norm`` ‖Ḡ‖_F, ``page`` ‖Ḡ Aᵀ‖²_F, ``fisher`` the mean over batches and entries of
        (G Aᵀ)²; each path → value. Ḡ is the mean over batches. A [4, d_in] is uniform within ±1/√d_in, as LoRA begins.
    """
    import torch

    random = torch.Generator().manual_seed(seed)
    A = {
        site.path: (2 * torch.rand(PROJECTED, site.shape[1], generator=random) - 1) / math.sqrt(site.shape[1])
        for site in sites
    }
    fisher = dict.fromkeys(A, 0.0)

    def see(path: str, gradient: Any) -> None:
        fisher[path] += float((gradient @ A[path].to(gradient).t()).square().mean()) / len(batches)

    by_name: dict[str, dict[str, float]] = {"importance": {}, "norm": {}, "page": {}, "fisher": fisher}
    means = mean_gradients(model, sites, batches, see=see)
    for site in sites:
        mean, weight = means[site.path], model.get_parameter(site.path).float()
        by_name["importance"][site.path] = float((_linear(site, weight) * mean).abs().mean())
        by_name["norm"][site.path] = float(mean.norm())
        by_name["page"][site.path] = float((mean @ A[site.path].to(mean).t()).square().sum())
    return by_name


def mean_gradients(
    model: Any,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    *,
    see: Callable[[str, Any], None] = lambda path, gradient: None,
) -> dict[str, Any]:
    """Path → Ḡ [d_out, d_in], the mean over batches of the gradient of the mean loss.

    Args:
        model: the base, bare or with adapters that do nothing yet. sites: where. batches: calibration rows.
        see: called with a path and each batch's gradient.
    """
    import torch

    from loratlas.evaluation.token_losses import token_losses

    model.eval()
    weights = {site.path: _weight(model, site) for site in sites}
    means = {site.path: torch.zeros(site.shape, device=weights[site.path].device) for site in sites}
    with _requiring(weights.values()):
        for batch in batches:
            batch = batch.to(next(iter(weights.values())).device)
            (token_losses(model, batch).sum() / batch.labelled).backward()
            for site in sites:
                weight = weights[site.path]
                gradient = _linear(site, weight.grad.float())
                weight.grad = None
                means[site.path] += gradient / len(batches)
                see(site.path, gradient)
    return means


def _weight(model: Any, site: Site) -> Any:
    """The base's own, within an adapter's layer as well."""
    from peft.tuners.lora import LoraLayer

    owner = model.get_submodule(site.module)
    return owner.get_base_layer().weight if isinstance(owner, LoraLayer) else model.get_parameter(site.path)


def _linear(site: Site, matrix: Any) -> Any:
    """As [d_out, d_in]."""
    return matrix.t() if "transposed" in site.flags else matrix


def stable_ranks(model: Any, sites: Sequence[Site]) -> dict[str, float]:
    """‖W‖²_F / ‖W‖²_2 of every matrix."""
    import torch

    by_name = {}
    for site in sites:
        weight = model.get_parameter(site.path).detach().float()
        by_name[site.path] = float(weight.square().sum() / torch.linalg.matrix_norm(weight, ord=2).square())
    return by_name


def outputs(tuned: Any, sites: Sequence[Site], batches: Sequence[Batch]) -> dict[str, float]:
    """Mean of ‖ΔW x‖² over tokens, by path.

    Args:
        tuned: a `PeftModel` whose adapters were trained. sites: that carry one. batches: calibration rows.
    """
    import torch

    from loratlas.adapters.peft_targets import adapted
    from loratlas.evaluation.token_losses import token_losses

    layers, sums, handles = adapted(tuned), dict.fromkeys((site.path for site in sites), 0.0), []
    for site in sites:
        layer = layers.get(site.path) or layers[site.module]
        (name,) = layer.lora_B

        def watch(_: Any, __: Any, y: Any, path: str = site.path, scale: float = layer.scaling[name]) -> None:
            sums[path] += float((scale * y.float()).square().sum())

        handles.append(layer.lora_B[name].register_forward_hook(watch))
    tuned.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                token_losses(tuned, batch.to(tuned.get_input_embeddings().weight.device))
    finally:
        for handle in handles:
            handle.remove()
    tokens = sum(batch.tokens for batch in batches)
    return {path: value / tokens for path, value in sums.items()}


def eva_start(tuned: Any, sites: Sequence[Site], directions: Mapping[str, Any]) -> None:
    """Begin as EVA does: rows of A along the first directions of each matrix's input, B = 0.

    Args:
        tuned: a `PeftModel` that was not trained yet. sites: that carry an adapter.
        directions: path → orthonormal rows [≥ rank, d_in], the largest variance first.
    """
    import torch

    from loratlas.adapters.peft_targets import adapted

    layers = adapted(tuned)
    for site in sites:
        layer = layers.get(site.path) or layers[site.module]
        (name,) = layer.lora_A
        factor = layer.lora_A[name].weight
        with torch.no_grad():
            factor.copy_(directions[site.path][: factor.shape[0]].to(factor))
            layer.lora_B[name].weight.zero_()


def gora_start(tuned: Any, sites: Sequence[Site], means: Mapping[str, Any]) -> None:
    """Begin as GoRA does: A as it is, B such that the adapter is a step of gradient descent within A's rows:

        B = −(γ/s) √(d_in/r) · Ḡ Aᵀ(A Aᵀ)⁻¹,    ΔW = s B A = −γ √(d_in/r) · Ḡ projected on the rows of A

    The root makes ‖ΔW‖ about γ ‖Ḡ‖ for a random A. Source: GoRA (arXiv:2502.12171).

    Args:
        tuned: a `PeftModel` that was not trained yet. sites: that carry an adapter. means: path → Ḡ [d_out, d_in].
    """
    from loratlas.adapters.peft_targets import adapted

    layers = adapted(tuned)
    for site in sites:
        put_gora(layers.get(site.path) or layers[site.module], means[site.path])


def put_gora(layer: Any, mean: Any) -> None:
    """`gora_start` of one layer; ``mean``: Ḡ [d_out, d_in]."""
    import torch

    (name,) = layer.lora_A
    A, B, scale = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    rank, width = A.shape
    with torch.no_grad():
        B.copy_(-GORA_STEP / scale * math.sqrt(width / rank) * (mean @ torch.linalg.pinv(A.float())))


class InputDirections(Signal):
    """The exact principal directions of every matrix's input, for small bases: Σ x xᵀ, its eigenvectors and -values.

    Unit: share of the input's energy. Cost: a matrix [d_in, d_in] per group of sites that read the same input.
    Source: EVA (arXiv:2410.07170), which sketches the same incrementally. Adam's geometry is not taken into account.
    """

    name = "input_directions"
    columns = ()
    needs = "forward"

    def reset(self, model: Any) -> None:
        self._sums: dict[str, Any] = {}

    def read(self, use: Any, output: Any) -> None:
        x = use.x.detach().float()
        before = self._sums.get(use.site.path)
        self._sums[use.site.path] = x.t() @ x if before is None else before + x.t() @ x

    def values(self, folds: Sequence[int] = ()) -> dict[str, dict[str, float]]:
        return {}

    def solved(self, most: int) -> dict[str, tuple[list[float], Any]]:
        """Path → (shares of the input's energy, directions [most, d_in]), the largest first."""
        import torch

        by_name = {}
        for path, total in self._sums.items():
            energies, vectors = torch.linalg.eigh(total)
            energies, vectors = energies.flip(0).clamp(min=0), vectors.flip(1)
            by_name[path] = ((energies[:most] / energies.sum()).tolist(), vectors[:, :most].t().contiguous())
        return by_name


@contextmanager
def _requiring(weights: Any) -> Iterator[None]:
    """Within this context these weights, and no others, require a gradient."""
    chosen = list(weights)
    before = [weight.requires_grad for weight in chosen]
    for weight in chosen:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight, required in zip(chosen, before, strict=True):
            weight.requires_grad_(required)
            weight.grad = None
