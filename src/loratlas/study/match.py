"""Equal spending: every arm's ranks are solved so that it spends what the reference spends.

An arm that names its ranks is obeyed, and what it spends is printed beside what was wanted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from loratlas.errors import RequestError
from loratlas.study.spec import StudySpec

if TYPE_CHECKING:
    from loratlas.anatomy.sites import Anatomy
    from loratlas.placement.budget import Memory
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


# The budget that says "as much as this placement spends", by quantity.
_LIKE = {"params": "like", "time": "time", "memory": "memory"}


def plans(
    spec: StudySpec, anatomy: Anatomy, memory: Memory | None = None
) -> tuple[dict[str, Plan], dict[str, Match | None]]:
    """The plan of every arm, and how its spending compares with the reference's.

    The reference comes first: its ranks are those written, or solved from the study's budget, or 16. With
    ``match``, every other arm with a free rank is solved to spend what the reference spends; without, from the
    study's budget, if there is one. An arm's own budget or written ranks are obeyed.

    Args:
        spec: the study.
        anatomy: of its base.
        memory: tells peak bytes of a typical step, where anything is to be matched by them.

    Returns:
        Arm → plan, and arm → :class:`Match` (None for the reference and where nothing is to be matched).

    Raises:
        PlacementError, BudgetError, SettingsError: of an arm; ``given`` says which.
    """
    from loratlas.placement.budget import spending

    reference = _plan(spec, spec.reference, anatomy, budget=spec.budget, memory=memory)
    found: dict[str, Plan] = {}
    matches: dict[str, Match | None] = {}
    for name, arm in spec.arms.items():
        if name == spec.reference:
            found[name], matches[name] = reference, None
            continue
        if spec.match == "none":
            found[name], matches[name] = _plan(spec, name, anatomy, budget=spec.budget, memory=memory), None
            continue
        like = f"{_LIKE[spec.match]}={reference.text}"
        found[name] = _plan(spec, name, anatomy, budget=like, memory=memory)
        wanted = spending(anatomy, reference.ranks, spec.match, memory)
        got = spending(anatomy, found[name].ranks, spec.match, memory)
        matches[name] = Match(
            quantity=spec.match,
            wanted=wanted,
            got=got,
            relative=got / wanted - 1,
            solved=arm.budget is None and found[name].budget is not None,
        )
    return found, matches


@contextmanager
def naming(arm: str) -> Iterator[None]:
    """Put the arm's name in front of what an error says was given."""
    try:
        yield
    except RequestError as error:
        error.given = f"arms.{arm}: {error.given}"
        error.args = (error.given, *error.args[1:])
        raise


def _plan(spec: StudySpec, name: str, anatomy: Anatomy, *, budget: str | None, memory: Memory | None) -> Plan:
    """One arm's plan; ``budget`` is used where the arm leaves a rank free and has no budget of its own."""
    from loratlas.placement.language import parse
    from loratlas.placement.plan import place
    from loratlas.placement.resolve import resolve

    arm = spec.arms[name]
    with naming(name):
        free = any(
            rank is None
            for _, rank in resolve(
                parse(arm.placement), anatomy, default="auto", allow_unresolved=spec.allow_unresolved
            )
        )
        chosen = arm.budget or (budget if free else None)
        return place(
            anatomy,
            arm.placement,
            budget=chosen,
            alpha=arm.alpha,
            rslora=arm.rslora,
            allow_unresolved=spec.allow_unresolved,
            memory=memory,
        )
