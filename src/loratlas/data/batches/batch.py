"""Some examples as tensors."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from loratlas.models.task import CAUSAL

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""Target of a position that the loss does not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some examples as tensors. Packed: shape [1, T], T the sum of lengths. Padded: [B, L], L the longest,
    filled right.

    A classification has one counted position a row: ``targets``, ``example`` and ``position_ids`` are [B, 1]. A source
    and its target are two matrices: ``input_ids`` and its mask hold the sources, the other three the targets,
    unshifted.

    Args:
        input_ids: int64.
        position_ids: int64; from 0 in every example.
        targets: int64; ``targets[t]`` is the token after t where that token is counted, else -100. Already
            shifted.
        example: int64; index within the batch of the example that a token belongs to, -1 on padding.
        where: int64 [labelled]; flat indices of the counted positions, row by row.
        lengths: tokens of each example.
        rows: what the caller calls each example (usually its index in `Encoded`).
        packed: end to end, or side by side.
        attention_mask: int64, 1 on tokens and 0 on padding; None when packed.
        labelled: counted positions.
        tokens: tokens without padding.
        task: name of the task, one of `loratlas.models.task.TASKS`.
        token_type_ids: int64 [B, L]; which text of a pair a token belongs to; None where nothing says so.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    targets: torch.Tensor
    example: torch.Tensor
    where: torch.Tensor
    lengths: tuple[int, ...]
    rows: tuple[int, ...]
    packed: bool
    attention_mask: torch.Tensor | None
    labelled: int
    tokens: int
    task: str = CAUSAL
    token_type_ids: torch.Tensor | None = None

    @property
    def answers(self) -> torch.Tensor:
        """The counted targets, int64 [labelled], in the order of `loratlas.data.batches.packing.forward`'s logits."""
        return self.targets.reshape(-1)[self.where]

    @property
    def owners(self) -> torch.Tensor:
        """Index within the batch of the example of each counted position, int64 [labelled]."""
        return self.example.reshape(-1)[self.where]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        if self.input_ids.device == device:
            return self
        moved = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if hasattr(value := getattr(self, field.name), "to")
        }
        return replace(self, **moved)
