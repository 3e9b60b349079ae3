"""The processes that train one run together, and what has to be alike in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Peers:
    """A run of one process: everything is as it is there.

    Attributes:
        alone: whether there is no other process.
        device: where tensors that are exchanged live; None for wherever they are.
    """

    alone = True
    device: Any = None

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over all processes."""
        return value

    def first(self, values: Sequence[int]) -> list[int]:
        """The integers that the first process has."""
        return list(values)
