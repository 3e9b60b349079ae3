"""The frozen layers below the lowest adapter: computed once for every row, and not once for every visit.

What these layers make of a row never changes while a run lasts. Where rows come more than once and memory allows, their
states at the input of the lowest adapted layer are kept, and a step begins there: the layers below hand on what they
are given, and the last of them returns the states of the batch's rows.

States are computed in chunks of rows that follow from the rows of the run alone, not from the batches that ask for
them. So a resumed run, which has nothing kept, computes the same numbers again, bit for bit (law 5).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from loratlas.data.batches.packing import forward
from loratlas.data.batches.packing_proof import FLOOR, TOLERANCE
from loratlas.formats import data_size
from loratlas.modeling import device_of, has_dropout, patched_forwards, unwrap
from loratlas.training.step.memory import free_bytes
from loratlas.training.step.microbatches import FILLER, microbatches

if TYPE_CHECKING:
    import torch

    from loratlas.data.batches.batching import Batch
    from loratlas.data.examples import Encoded

SHARE = 0.25
"""Of the memory that is free when a run begins, what its rows' states may take; on a CPU, where others may begin too,
of the part that goes with the cores it uses."""

CHUNK = 1024
"""Tokens computed together when states are made; a longer row is a chunk of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Where a model keeps its decoder layers.

    Args:
        path: of the list, such as ``model.layers``.
        modules: the layers, lowest first.
    """

    path: str
    modules: tuple[Any, ...]

    def lowest(self, names: Sequence[str]) -> int | None:
        """The lowest layer that owns one of these parameters or modules; 0 where one stands beside the layers, before
        or between them; None where all stand behind the whole stack.

        >>> Layers(path="model.layers", modules=()).lowest(["model.layers.3.mlp.up_proj", "lm_head"])
        3
        """
        stack = self.path.rpartition(".")[0]
        layers = []
        for name in names:
            if name.startswith(f"{self.path}."):
                layers.append(int(name.removeprefix(f"{self.path}.").partition(".")[0]))
            elif not stack or name.startswith(f"{stack}."):
                return 0
        return min(layers, default=None)


def layers_of(model: Any) -> Layers | None:
    """The decoder layers of a model, if it has exactly one list of as many modules as its config names layers.

    Lists inside such a list, of experts say, do not count.
    """
    import torch

    inner = unwrap(model)
    wanted = getattr(inner.config.get_text_config(), "num_hidden_layers", None)
    lists = [
        (name, module)
        for name, module in inner.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == wanted
    ]
    outer = [
        candidate for candidate in lists if not any(candidate[0].startswith(f"{name}.") for name, _ in lists)
    ]
    return Layers(path=outer[0][0], modules=tuple(outer[0][1])) if len(outer) == 1 else None


def lowest_trained_layer(model: Any) -> int | None:
    """The lowest layer with a parameter that requires a gradient, as `Layers.lowest` counts; the number of layers where
    all stand behind them; None where the layers are not one list."""
    layers = layers_of(model)
    if layers is None:
        return None
    lowest = layers.lowest([name for name, p in unwrap(model).named_parameters() if p.requires_grad])
    return len(layers.modules) if lowest is None else lowest


class _Reached(Exception):
    """No error: it ends a pass where nothing above is wanted."""


class FrozenPrefix:
    """States of rows at the input of a layer.

    Args:
        model: frozen below that layer; bare or as a `PeftModel`, in training mode.
        data: encoded rows.
        pool: which of them will come.
        layers: of the model.
        depth: the layer whose input is kept, at least 1.
    """

    def __init__(self, model: Any, data: Encoded, pool: Sequence[int], *, layers: Layers, depth: int) -> None:
        self.model, self.data, self.depth = model, data, depth
        self._below = layers.modules[:depth]
        self._device = device_of(model)
        self._pool = sorted({int(row) for row in pool})
        self._chunk_of, self._chunks = _chunks(data, self._pool)
        self._kept: dict[int, torch.Tensor] = {}
        self._as_tuple = False
        self._fill(self._chunk_of[self._pool[0]])

    def fill(self, rows: Iterable[int]) -> Iterator[None]:
        """Compute what these rows need and is not there yet, chunk by chunk; somebody may ask for an end in between."""
        for chunk in sorted({self._chunk_of[int(row)] for row in rows}):
            if self._chunks[chunk][0] not in self._kept:
                self._fill(chunk)
                yield

    def bytes(self) -> int:
        """Of the states of all rows, once they are there."""
        row = self._kept[self._pool[0]]
        tokens = sum(len(self.data.examples[row]) for row in self._pool)
        return tokens * row.shape[-1] * row.element_size()

    def lasting(self) -> list[torch.Tensor]:
        """The states kept so far."""
        return list(self._kept.values())

    @contextmanager
    def within(self, batch: Batch) -> Iterator[None]:
        """Within this context the model computes a batch from the kept states on.

        Args:
            batch: packed, of rows that have been filled.
        """
        states = self._states(batch)

        def hand_on(*given: Any, **named: Any) -> Any:
            return self._returned(given[0] if given else named["hidden_states"])

        def begin(*_given: Any, **_named: Any) -> Any:
            return self._returned(states)

        changes = [(layer, hand_on) for layer in self._below[:-1]] + [(self._below[-1], begin)]
        with _not_compiled(self._below), patched_forwards(changes):
            yield

    def _returned(self, states: torch.Tensor) -> Any:
        """As this kind of layer returns it."""
        return (states,) if self._as_tuple else states

    def _states(self, batch: Batch) -> torch.Tensor:
        """[1, T, d]; zeros for the tokens that fill up, which nothing sees."""
        import torch

        like = self._kept[self._pool[0]]
        parts = [
            like.new_zeros(n, like.shape[-1]) if row == FILLER else self._kept[row]
            for row, n in zip(batch.rows, batch.lengths, strict=True)
        ]
        return torch.cat(parts)[None]

    def _fill(self, chunk: int) -> None:
        """Compute and keep the states of a chunk's rows."""
        import torch

        (batch,) = microbatches(self.data, self._chunks[chunk], packed=True)
        outputs: list[torch.Tensor] = []

        def keep(_module: Any, _arguments: Any, output: Any) -> None:
            self._as_tuple = isinstance(output, tuple)
            outputs.append(output[0] if self._as_tuple else output)
            raise _Reached

        hook = self._below[-1].register_forward_hook(keep)
        try:
            with torch.no_grad(), _not_compiled(self._below):
                forward(self.model, batch.to(self._device))
        except _Reached:
            pass
        finally:
            hook.remove()
        start = 0
        for row, n in zip(batch.rows, batch.lengths, strict=True):
            if row != FILLER:
                self._kept[row] = outputs[0][0, start : start + n].clone()
            start += n


def prefix_for(
    model: Any, data: Encoded, order: np.ndarray, *, depth: int | None = None, whatever_memory: bool = False
) -> tuple[FrozenPrefix | None, str]:
    """A prefix for a run's rows, if there is one to keep; proven on the very model before it is used.

    Args:
        model: in training mode; bare or as a `PeftModel`.
        data: encoded rows, trained on in packed batches.
        order: rows of all steps to come and gone, of any shape.
        depth: the lowest adapted layer; None: the lowest that has a parameter which requires a gradient.
        whatever_memory: do not ask whether memory allows.

    Returns:
        The prefix, and why it is kept; or None, and why not: no whole layer is frozen, no row comes twice, the base has
        dropout, memory is short, or the model is not one whose layers pass one tensor from each to the next.
    """
    pool = np.unique(order).tolist()
    if order.size <= len(pool):
        return None, "no row comes twice"
    if has_dropout(unwrap(model).config):
        return None, "the base has dropout"
    try:
        prefix = unproven_prefix(model, data, pool, depth=depth)
        if prefix is None:
            return None, "no whole layer below the lowest adapter is frozen, or the layers are not one list"
        size, allowed = prefix.bytes(), _allowed(prefix.lasting()[0].device)
        if not whatever_memory and size > allowed:
            return (
                None,
                f"its states take {data_size(size)}, and {data_size(allowed)} are free for them",
            )
        difference, most = _difference(model, data, prefix, order)
    except Exception as error:  # whatever a strange model raises, its layers can still be computed every time
        words = " ".join(str(error).split())[:160]
        return None, f"this model's layers cannot be run from kept states ({type(error).__name__}: {words})"
    if not difference <= most:
        return None, f"losses from kept states differ by {difference:.1e}, rounding explains {most:.1e}"
    return prefix, f"{prefix.depth} frozen layers; proven on this model (largest difference {difference:.1e})"


def unproven_prefix(
    model: Any, data: Encoded, pool: Sequence[int], *, depth: int | None = None
) -> FrozenPrefix | None:
    """A prefix that nothing has been proven of; None where no whole layer is frozen, or none can be told.

    Args:
        model: bare or as a `PeftModel`.
        data: encoded rows.
        pool: which of them will come.
        depth: as for `prefix_for`.
    """
    layers = layers_of(model)
    if layers is None:
        return None
    if depth is None:
        depth = lowest_trained_layer(model) or 0
    return FrozenPrefix(model, data, pool, layers=layers, depth=depth) if depth >= 1 else None


def _allowed(device: torch.device) -> float:
    """Bytes that states may take."""
    import torch

    cores = min(1.0, torch.get_num_threads() / (os.cpu_count() or 1)) if device.type == "cpu" else 1.0
    return SHARE * cores * free_bytes(device)


def _difference(model: Any, data: Encoded, prefix: FrozenPrefix, order: np.ndarray) -> tuple[float, float]:
    """How far some rows' losses are off with the kept states, dropout of the adapters included, relative to those
    without; and how far rounding explains."""
    import torch

    from loratlas.evaluation.token_losses import token_losses

    rows = order.reshape(-1)[:3].tolist()
    for _ in prefix.fill(rows):
        pass
    (batch,) = microbatches(data, rows, packed=True)
    batch = batch.to(device_of(model))

    def losses() -> torch.Tensor:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            return token_losses(model, batch).double()

    without = losses()
    with prefix.within(batch):
        kept = losses()
    allowed = TOLERANCE.get(str(prefix.lasting()[0].dtype).removeprefix("torch."), FLOOR)
    return float((kept - without).norm() / without.norm()), allowed


def _chunks(data: Encoded, pool: Sequence[int]) -> tuple[dict[int, int], list[list[int]]]:
    """(row → its chunk, rows of every chunk)."""
    chunks: list[list[int]] = []
    tokens = CHUNK
    for row in pool:
        n = len(data.examples[row])
        if tokens + n > CHUNK:
            chunks.append([])
            tokens = 0
        chunks[-1].append(row)
        tokens += n
    return {row: index for index, rows in enumerate(chunks) for row in rows}, chunks


@contextmanager
def _not_compiled(layers: Sequence[Any]) -> Iterator[None]:
    """Within this context layers that are compiled are called as they are."""
    before = [layer._compiled_call_impl for layer in layers]
    for layer in layers:
        layer._compiled_call_impl = None
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer._compiled_call_impl = own
