"""Who owns which rows of a pass that several runs own.

Packed batches are laid end to end; padded ones one above the other, filled to the longest row of all. Either way run k
owns one range [s_k, e_k) of the u units of the pass, tokens or examples. A tensor whose n rows lie as the batch does
(all places of the first unit, all of the second, …) belongs to it from n·s_k/u to n·e_k/u. A second range is that of
the counted places, which an output embedding reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import TYPE_CHECKING

import torch

from loratlas.data.batches.batch import IGNORED, Batch
from loratlas.errors import ModelError
from loratlas.models.task import SEQ2SEQ
from loratlas.training.step.microbatches import CALL_TOKENS

if TYPE_CHECKING:
    from loratlas.training.fleet.adapter_slots import AdapterSlot


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSlice:
    """A slot's part of a pass: of its units (tokens if packed, else examples), and of the counted places."""

    slot: AdapterSlot
    units: slice
    counted: slice


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSlices:
    """The row slices of a pass, in the order of its rows.

    Args:
        slices: which together own everything.
        packed: whether units are tokens.
    """

    slices: tuple[RowSlice, ...]
    packed: bool

    @staticmethod
    def of(parts: Sequence[tuple[AdapterSlot, Batch]]) -> RowSlices:
        """Where these slots sit once their batches are joined (`join_batches`)."""
        slices, unit, count = [], 0, 0
        for slot, batch in parts:
            ends = unit + units(batch), count + batch.labelled
            slices.append(RowSlice(slot=slot, units=slice(unit, ends[0]), counted=slice(count, ends[1])))
            unit, count = ends
        return RowSlices(slices=tuple(slices), packed=parts[0][1].packed)

    def rows(self, own: RowSlice, x: torch.Tensor, *, counted: bool = False) -> slice:
        """A run's rows among those of x [.., d].

        Args:
            own: a run's, one of the pass.
            x: what a module reads.
            counted: whether the module reads the counted places only.

        Raises:
            ModelError: the rows of x are not laid out as the batch is.
        """
        n = x.numel() // x.shape[-1]
        if len(self.slices) == 1:
            return slice(0, n)
        last = self.slices[-1]
        if counted and n == last.counted.stop:
            return own.counted
        whole = last.units.stop
        # Of more than two dimensions, only the first tells whether examples come first.
        laid = n == whole if self.packed else (x.shape[0] == whole or (x.ndim == 2 and n % whole == 0))
        if not laid:
            raise ModelError(
                given=f"a pass of {whole} {'tokens' if self.packed else 'examples'} of several runs",
                found=f"a module that reads [{', '.join(map(str, x.shape))}], which is not laid out as they are",
                instead="these runs one by one",
            )
        return slice(own.units.start * n // whole, own.units.stop * n // whole)


def units(batch: Batch) -> int:
    """Tokens of a packed batch, examples of a padded one."""
    return batch.input_ids.shape[1] if batch.packed else batch.input_ids.shape[0]


def padded_tokens(batches: Sequence[Batch]) -> int:
    """Places that batches take once they are joined, padding included."""
    if batches[0].packed:
        return sum(batch.input_ids.shape[1] for batch in batches)
    width = max(batch.input_ids.shape[1] for batch in batches)
    if batches[0].task == SEQ2SEQ:
        width += max(batch.targets.shape[1] for batch in batches)
    return width * sum(len(batch.input_ids) for batch in batches)


def can_join(batches: Sequence[Batch], more: Batch, *, most: int) -> bool:
    """Whether one more batch may join: all fit into ``most`` places, and filling up costs less than another pass."""
    together = padded_tokens([*batches, more])
    return together <= most and together - padded_tokens(batches) - padded_tokens([more]) <= CALL_TOKENS


def join_batches(batches: Sequence[Batch], *, pad_id: int) -> Batch:
    """Batches as one: packed ones end to end, padded ones one above the other.

    Args:
        batches: all packed or none, on the CPU.
        pad_id: fills short rows.
    """
    if len(batches) == 1:
        return batches[0]
    firsts = list(accumulate((len(batch.lengths) for batch in batches[:-1]), initial=0))
    packed = batches[0].packed

    def together(parts: Sequence[torch.Tensor], fill: int) -> torch.Tensor:
        if packed:
            return torch.cat(list(parts), 1)
        width = max(part.shape[1] for part in parts)
        return torch.cat([_filled(part, width, fill) for part in parts])

    targets = together([batch.targets for batch in batches], IGNORED)
    owners = [batch.example for batch in batches]
    owners = [torch.where(own < 0, -1, own + first) for own, first in zip(owners, firsts, strict=True)]
    masks = [batch.attention_mask for batch in batches if batch.attention_mask is not None]
    types = [batch.token_type_ids for batch in batches]
    if any(known is not None for known in types):  # where nothing says so, a text is the first
        none = [torch.zeros_like(batch.input_ids) for batch in batches]
        types = [own if own is not None else zero for own, zero in zip(types, none, strict=True)]
    return replace(
        batches[0],
        input_ids=together([batch.input_ids for batch in batches], pad_id),
        position_ids=together([batch.position_ids for batch in batches], 0),
        targets=targets,
        example=together(owners, -1),
        where=(targets.reshape(-1) != IGNORED).nonzero()[:, 0],
        lengths=tuple(chain.from_iterable(batch.lengths for batch in batches)),
        rows=tuple(chain.from_iterable(batch.rows for batch in batches)),
        attention_mask=together(masks, 0) if masks else None,
        labelled=sum(batch.labelled for batch in batches),
        tokens=sum(batch.tokens for batch in batches),
        token_type_ids=together([own for own in types if own is not None], 0)
        if types[0] is not None
        else None,
    )


def _filled(part: torch.Tensor, width: int, fill: int) -> torch.Tensor:
    return torch.nn.functional.pad(part, (0, width - part.shape[1]), value=fill)
