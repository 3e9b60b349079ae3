"""Equal spending: every arm's ranks are solved so that it spends what the reference spends.

An arm that names its ranks is obeyed, and what it spends is printed beside what was wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from loratlas.errors import RequestError
from loratlas.study.spec.study_spec import ArmSpec, StudySpec

if TYPE_CHECKING:
    from loratlas.anatomy.sites import Anatomy
    from loratlas.dynamic.moving_plan import Moving, Start
    from loratlas.placement.budget import Memory
    from loratlas.placement.plan import Plan
    from loratlas.scan.scores import Scan


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetMatch:
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


def check_written(spec: StudySpec, anatomy: Anatomy) -> None:
    """Refuse placements in words that find nothing, before a scan takes minutes for the arms that it places.

    Raises:
        PlacementError: of an arm; ``given`` says which.
    """
    from loratlas.placement.language import parse
    from loratlas.placement.resolve import resolve
    from loratlas.scan.plan_from_scores import is_auto, is_scan

    for name, arm in spec.arms.items():
        if not (is_auto(arm.placement) or is_scan(arm.placement)):
            with naming(name):
                resolve(parse(arm.placement), anatomy, allow_unresolved=spec.allow_unresolved)


def plans(
    spec: StudySpec,
    anatomy: Anatomy,
    memory: Memory | None = None,
    *,
    scan: Scan | None = None,
    known: Mapping[str, Plan] | None = None,
) -> tuple[dict[str, Plan], dict[str, BudgetMatch | None]]:
    """The plan of every arm, and how its spending compares with the reference's.

    The reference comes first: its ranks are those written, or solved from the study's budget, or 16. With
    ``match``, every other arm with a free rank is solved to spend what the reference spends; without, from the
    study's budget, if there is one. An arm's own budget or written ranks are obeyed. An arm whose placement is
    ``scan`` uses its budget by a scan; one whose placement is ``auto`` begins as `all` and moves inside its runs.

    Args:
        spec: the study.
        anatomy: of the base.
        memory: tells peak bytes of a typical step, where anything is to be matched by them.
        scan: of the training rows; needed where an arm is ``scan``.
        known: plans of such arms that the study began with, which need no scan.

    Returns:
        Arm → plan, and arm → :class:`BudgetMatch` (None for the reference and where nothing is to be matched).

    Raises:
        PlacementError, BudgetError, SettingsError: of an arm; ``given`` says which.
    """
    from loratlas.placement.budget import cost_of_ranks
    from loratlas.scan.plan_from_scores import is_auto

    solved: dict[str, Plan] = {}
    matches: dict[str, BudgetMatch | None] = {}

    def planned(name: str, budget: str | None) -> Plan:
        return (known or {}).get(name) or _plan(spec, name, anatomy, scan, budget=budget, memory=memory)

    reference = planned(spec.reference, spec.budget)
    for name, arm in spec.arms.items():
        if name == spec.reference:
            solved[name], matches[name] = reference, None
            continue
        solved[name] = planned(name, shared_budget(spec, name, reference))
        if spec.match == "none":
            matches[name] = None
            continue
        wanted, got = (
            plan.trainable
            if spec.match == "params"
            else cost_of_ranks(anatomy, plan.ranks, spec.match, memory)
            for plan in (reference, solved[name])
        )
        if name not in (known or {}) and is_auto(arm.placement):
            # Some policies begin with more than they end with.
            got = min(got, wanted) if moving_of(arm).schedule.peak > 1 else got
        matches[name] = BudgetMatch(
            quantity=spec.match,
            wanted=wanted,
            got=got,
            relative=got / wanted - 1,
            solved=arm.budget is None and solved[name].budget is not None,
        )
    return solved, matches


@contextmanager
def naming(arm: str) -> Iterator[None]:
    """Put the arm's name in front of what an error says was given."""
    try:
        yield
    except RequestError as error:
        error.given = f"arms.{arm}: {error.given}"
        error.args = (error.given, *error.args[1:])
        raise


def _plan(
    spec: StudySpec,
    name: str,
    anatomy: Anatomy,
    scan: Scan | None,
    *,
    budget: str | None,
    memory: Memory | None,
) -> Plan:
    """One arm's plan; ``budget`` is used where the arm leaves a rank free and has no budget of its own."""
    from loratlas.placement.language import parse
    from loratlas.placement.plan import place
    from loratlas.placement.resolve import resolve
    from loratlas.scan.plan_from_scores import is_auto, is_scan, plan_from

    arm = spec.arms[name]
    with naming(name):
        if is_auto(arm.placement):
            return started(spec, name, anatomy, budget=budget, memory=memory).plan
        if is_scan(arm.placement):
            assert scan is not None  # `loratlas.study.inputs.prepare` made it
            chosen = arm.budget or budget
            return plan_from(scan, anatomy, budget=chosen, alpha=arm.alpha, rslora=arm.rslora, memory=memory)[
                0
            ]
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
            dora=arm.dora,
            allow_unresolved=spec.allow_unresolved,
            memory=memory,
        )


def shared_budget(spec: StudySpec, name: str, reference: Plan) -> str | None:
    """What an arm may use that has no budget of its own: the study's, or as much as the reference costs.

    Args:
        spec: the study. name: of the arm. reference: plan of the arm that others are matched to.
    """
    from loratlas.placement.budget import LIKE_OF

    if name == spec.reference or spec.match == "none":
        return spec.budget
    # A text in the placement language does not say that its sites have DoRA's lengths as well.
    return f"params={reference.trainable}" if reference.dora else f"{LIKE_OF[spec.match]}={reference.text}"


def started(
    spec: StudySpec, name: str, anatomy: Anatomy, *, budget: str | None, memory: Memory | None
) -> Start:
    """What the runs of an arm begin with whose adapters move.

    Args:
        spec: the study. name: of the arm. anatomy: of the base.
        budget: where the arm has none of its own. memory: tells peak bytes.
    """
    from loratlas.dynamic.moving_plan import start

    arm = spec.arms[name]
    return start(
        moving_of(arm),
        anatomy,
        budget=arm.budget or budget,
        alpha=arm.alpha,
        rslora=arm.rslora,
        allow_unresolved=spec.allow_unresolved,
        memory=memory,
    )


def moving_of(arm: ArmSpec) -> Moving:
    """How an arm's adapters move."""
    from loratlas.dynamic.moving_plan import Moving

    return Moving.read(arm.signal, arm.head, arm.decide)


def arms_of_scan(spec: StudySpec, about: Mapping[str, Any] | None) -> list[str]:
    """Arms that a scan places: those that say so, and ``auto`` in a study that began when that meant a scan.

    Args:
        spec: the study. about: attributes of its ledger, where it has begun.
    """
    from loratlas.scan.plan_from_scores import is_auto, is_scan

    before = about is not None and "scan" in about and "moving" not in about
    return [
        name
        for name, arm in spec.arms.items()
        if is_scan(arm.placement) or (before and is_auto(arm.placement))
    ]
