"""One line of a plan: where, of which rank, at which scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

from loratlas.anatomy.sites import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """One line of a plan.

    Args:
        site: where.
        rank: r, at least 1.
        alpha: α; the adapter is scaled by α/r, or α/√r with rsLoRA.
    """

    site: Site
    rank: int
    alpha: float

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that the adapter stands in: one, or every copy of a tied matrix."""
        return tuple(path.rpartition(".")[0] for path in self.site.called_as) or (self.site.module,)

    @property
    def trainable(self) -> int:
        """Parameters of this row's adapter."""
        return self.site.lora_parameters(self.rank)

    def scaling(self, *, rslora: bool) -> float:
        """The factor in front of B A."""
        return self.alpha / (math.sqrt(self.rank) if rslora else self.rank)
