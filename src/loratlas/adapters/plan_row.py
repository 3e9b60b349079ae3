"""One line of a plan: where, of which rank, at which scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loratlas.anatomy.sites import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """One line of a plan.

    Args:
        site: where.
        rank: r, at least 1.
        alpha: α; the adapter is scaled by α/r, or α/√r with rsLoRA.
        dora: whether each row of the adapted matrix has a trained length of its own (DoRA, Liu et al. 2024,
            arXiv:2402.09353); all rows of a plan, or none, as PEFT has it.
    """

    site: Site
    rank: int
    alpha: float
    dora: bool = False

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that the adapter stands in: one, or every copy of a tied matrix."""
        return tuple(path.rpartition(".")[0] for path in self.site.called_as) or (self.site.module,)

    @property
    def trainable(self) -> int:
        """Parameters of this row's adapter: r·(d_in + d_out), and with DoRA one more for each output."""
        return self.site.lora_parameters(self.rank) + (self.site.dora_parameters if self.dora else 0)

    def scaling(self, *, rslora: bool) -> float:
        """The factor in front of B A."""
        return self.alpha / (math.sqrt(self.rank) if rslora else self.rank)


def rows_of_json(plan: Mapping[str, Any]) -> tuple[PlanRow, ...]:
    """The rows of a plan as `loratlas.placement.plan.Plan.to_json` writes it.

    Args:
        plan: with its ``sites``; ``dora`` where they have it.
    """
    own = ("rank", "alpha", "why")
    return tuple(
        PlanRow(
            site=Site.from_json({name: value for name, value in item.items() if name not in own}),
            rank=item["rank"],
            alpha=item["alpha"],
            dora=bool(plan.get("dora")),
        )
        for item in plan["sites"]
    )
