"""What a fleet's bank keeps of one run: its factors at every site, its head, its stream of dropout masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from loratlas.adapters.layers.sparse_dropout import draw


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotFactors:
    """One run at one site. At a stack of E experts every tensor has one more dimension in front, E.

    Args:
        A: [r, d_in], in the computing type.
        B: [d_out, r].
        to_down: gradient of A's master, float32; added to.
        to_up: likewise of B's.
        scale: in front of B A.
    """

    A: torch.Tensor
    B: torch.Tensor
    to_down: torch.Tensor
    to_up: torch.Tensor
    scale: float

    def by_expert(self, experts: int) -> SlotFactors:
        """PEFT's two matrices of a stack, as views by expert: A [E·r, d_in] lies expert by expert, in B [d_out, r·E]
        the experts of one rank lie side by side."""

        def down(matrix: torch.Tensor) -> torch.Tensor:
            return matrix.view(experts, -1, matrix.shape[-1])

        def up(matrix: torch.Tensor) -> torch.Tensor:
            return matrix.view(len(matrix), -1, experts).permute(2, 0, 1)

        return SlotFactors(
            A=down(self.A),
            B=up(self.B),
            to_down=down(self.to_down),
            to_up=up(self.to_up),
            scale=self.scale,
        )


class AdapterSlot:
    """One run as the bank sees it.

    Args:
        factors: its factors by module path; those of a stack of experts by the parameter's.
        heads: module path → the run's own copy of that module.
        dropout: probability in front of A; stacks have none.
    """

    def __init__(
        self,
        factors: Mapping[str, SlotFactors],
        *,
        heads: Mapping[str, Any] | None = None,
        dropout: float = 0.0,
    ) -> None:
        self.factors, self.heads, self.dropout = factors, heads or {}, dropout
        self._random: torch.Tensor | None = None

    def begin(self, seed: int) -> None:
        """Start the stream of dropout masks of a step."""
        self._random = torch.Generator().manual_seed(seed).get_state()

    def draw(self, x: torch.Tensor) -> torch.Tensor | None:
        """What is dropped next in the run's own stream: what the run alone would draw for these rows."""
        if not self.dropout:
            return None
        assert self._random is not None
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._random)
            drop = draw(x, self.dropout)
            self._random = torch.get_rng_state()
        return drop
