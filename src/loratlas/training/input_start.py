"""Where adapters begin: A along the directions that the inputs of its matrix really have, B at 0.

A random A reads a random part of its input, and little of it: B learns slowly. Most of an input's energy lies in a few
directions; an A that reads those lets B learn more in the same steps, if the directions are spread over many channels.
In large pretrained bases a few channels drown all others; their leading direction is one of these, and an A along it
ends worse than a random one. The base does not change and the adapter begins at 0 either way, so that what comes out is
an ordinary adapter.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import TYPE_CHECKING, Any

from loratlas.adapters.peft_targets import adapted
from loratlas.errors import SettingsError
from loratlas.modeling import device_of, modes_kept
from loratlas.signals.sketch import eigenvectors
from loratlas.training.run_events import ChosenStart
from loratlas.training.settings import AUTO, EVA, Settings

if TYPE_CHECKING:
    import torch

    from loratlas.data.batches.batch import Batch
    from loratlas.data.examples import Encoded

SHARE = 0.05
"""Rows that are read, as a share of those that the run trains on; a forward pass is a third of a step's work."""

FEWEST, MOST = 8, 64
"""Rows that are read at least and at most."""


LEAST_SPREAD = 0.04
"""Share of its channels that the leading direction of a matrix's input has to be spread over, in the middle of all
matrices, for ``init="auto"`` to begin along it. Bases of 8 million parameters have 0.09 to 0.32 over 36 cases,
SmolLM2-135M and Gemma 3 270M 0.004 to 0.009."""


def begin(model: Any, data: Encoded, settings: Settings, *, packed: bool, steps: int) -> ChosenStart | None:
    """Begin a run's adapters as its settings ask, where that is the run's own to do.

    ``init="auto"`` begins along the inputs where the median over matrices of

        spread = 1 / (d Σ_i v_i⁴),    v the leading direction of an input of d channels

    the participation ratio of v as a share of the channels, is `LEAST_SPREAD` or more, and as PEFT does otherwise.

    Args, raises: as `begin_along_inputs`.

    Returns:
        What was decided; None where nothing was to be.

    Source: few channels of enormous size in pretrained bases, Sun et al. (2024), arXiv:2402.17762.
    """
    if settings.init == EVA:
        begin_along_inputs(model, data, settings, packed=packed, steps=steps)
    if settings.init != AUTO:
        return None
    factors, _ = along_inputs(model, data, settings, packed=packed, steps=steps)
    spread = median([_spread(factor) for factor in factors.values()] or [0.0])
    if spread < LEAST_SPREAD:
        return ChosenStart(init=True, spread=spread)
    _write(model, factors)
    return ChosenStart(init=EVA, spread=spread)


def _spread(factor: torch.Tensor) -> float:
    """Participation ratio of the first row of A, as a share of its channels."""
    first = factor[0].detach().double()
    return float(first.square().sum().square() / first.pow(4).sum() / len(first))


def begin_along_inputs(model: Any, data: Encoded, settings: Settings, *, packed: bool, steps: int) -> int:
    """Turn every factor A to the leading directions of its matrix's input.

        A = V_rᵀ,    V_r the r leading eigenvectors of Σ_t x_t x_tᵀ

    over the counted positions of the run's first rows (all tokens where a layer reads other positions, as an encoder
    does). Rows of A are orthonormal; where the positions span fewer than r directions the others stay as they were
    drawn. Embeddings, convolutions and stacks of experts begin as PEFT begins them.

    Args:
        model: a `PeftModel` that was not trained yet (B = 0). data: what it will be trained on.
        settings: of the run. packed: how its batches are laid out. steps: of the run.

    Returns:
        How many rows were read.

    Raises:
        SettingsError: an adapter that was trained already, which another A would make another function.

    Source: EVA, Paischer et al. (2024), arXiv:2410.07170. Departures: ranks are the plan's, nothing is handed from one
    matrix to another; one pass and a sketch (`loratlas.signals.sketch.eigenvectors`) instead of an incremental
    decomposition until it settles.
    """
    factors, rows = along_inputs(model, data, settings, packed=packed, steps=steps)
    _write(model, factors)
    return rows


def along_inputs(
    model: Any, data: Encoded, settings: Settings, *, packed: bool, steps: int
) -> tuple[dict[str, torch.Tensor], int]:
    """(factors by the names of their parameters, how many rows were read) of `begin_along_inputs`; nothing changes."""
    import torch

    from loratlas.data.batches.batching import collate, training_order
    from loratlas.evaluation.token_losses import token_losses

    order = training_order(
        len(data), steps=steps, batch_size=settings.batch_size, seed=settings.seed, subset=settings.subset
    ).reshape(-1)
    chosen = order[: min(MOST, max(FEWEST, int(SHARE * order.size)))].tolist()
    found = list(_factors(model))
    trained = [name for name, layer, _ in found if any(B.weight.any() for B in layer.lora_B.values())]
    if trained:
        raise SettingsError(
            given=f"init {settings.init}",
            found=f"an adapter that was trained already (B at {trained[0]} is not 0)",
            instead="init true, or a new adapter",
        )
    sums = {name: _Covariance(name, factor, settings.seed) for name, _, factor in found}
    size = settings.micro_batch or settings.batch_size
    with torch.no_grad(), modes_kept(model), model.disable_adapter():  # they are 0, and would only take time
        model.eval()
        for first in range(0, len(chosen), size):
            rows = chosen[first : first + size]
            batch = collate([data.examples[i] for i in rows], packed=packed, pad_id=data.pad_id, rows=rows)
            batch = batch.to(device_of(model))
            hooks = [
                layer.register_forward_pre_hook(_reader(sums[name], batch), with_kwargs=True)
                for name, layer, _ in found
            ]
            try:
                token_losses(model, batch)
            finally:
                for hook in hooks:
                    hook.remove()
        begun = {}
        for name, _, factor in found:
            directions = sums[name].directions(factor.shape[0])
            begun[name] = torch.cat([directions.to(factor), factor[len(directions) :]])
    return begun, len(chosen)


def _factors(model: Any) -> Iterator[tuple[str, Any, torch.Tensor]]:
    """(name of the parameter, layer, factor A) of every layer that multiplies rows by one matrix."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for layer in adapted(model).values():
        for adapter in layer.lora_A:
            factor = getattr(layer.lora_A[adapter], "weight", None)
            if factor is not None and _reads_rows(layer):
                yield names[id(factor)], layer, factor


def _write(model: Any, factors: Mapping[str, torch.Tensor]) -> None:
    """Put factors in the place of those that a model has."""
    import torch

    with torch.no_grad():
        for name, factor in factors.items():
            model.get_parameter(name).copy_(factor)


def _reads_rows(layer: Any) -> bool:
    """Whether a layer multiplies rows by one matrix: no embedding, no convolution, no stack of experts."""
    from peft.tuners.lora.layer import ParamWrapper

    if isinstance(layer, ParamWrapper):
        return False
    return all(factor.weight.dim() == 2 for factor in layer.lora_A.values())


def _reader(sums: _Covariance, batch: Batch) -> Callable[..., None]:
    """What adds a layer's input: at the counted positions, or else without padding."""
    padded = None if batch.attention_mask is None else batch.attention_mask.reshape(-1).nonzero()[:, 0]

    def read(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = (arguments[0] if arguments else next(iter(named.values()))).flatten(0, -2)
        if len(x) == batch.targets.numel():
            x = x[batch.where]
        elif batch.attention_mask is not None and len(x) == batch.attention_mask.numel():
            x = x[padded]
        sums.add(x)

    return read


class _Covariance:
    """Σ x xᵀ Ω of one matrix's input, Ω a random orthonormal basis of 4r + 16 columns."""

    def __init__(self, name: str, factor: torch.Tensor, seed: int) -> None:
        import torch

        rank, width = factor.shape
        random = torch.Generator().manual_seed(zlib.crc32(name.encode()) ^ seed)
        drawn = torch.randn(width, min(width, 4 * rank + 16), generator=random)
        self.basis = torch.linalg.qr(drawn).Q.to(factor.device)
        self.total = torch.zeros_like(self.basis)

    def add(self, x: torch.Tensor) -> None:
        x = x.float()
        self.total += x.t() @ (x @ self.basis)

    def directions(self, most: int) -> torch.Tensor:
        """[≤ most, d_in], orthonormal rows, the largest first; none of inputs that are not finite: such a run says so
        at its first step.
        """
        if not bool(self.total.isfinite().all()):
            return self.total[:, :0].t()
        return eigenvectors(self.total, self.basis)[:, :most].t()
