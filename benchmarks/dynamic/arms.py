"""What can be trained in a case: static placements, rules' plans, and policies that decide inside the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.dynamic.cases import Case
from loratlas.anatomy.sites import Anatomy
from loratlas.placement.plan import Plan, place
from loratlas.training.run_hooks import RunHook

REFERENCE = "all"

STATIC: Mapping[str, str] = {
    "all": "all",
    "feedforward": "feedforward",
    "attention": "attention",
    "without-first": "all - all@0",
}
"""Arm → placement whose ranks the budget solves; ``without-first``: all without layer 0."""


def plan_of(arm: str, anatomy: Anatomy, case: Case, plans: Mapping[str, Sequence[str]], *, seed: int) -> Plan:
    """The plan that an arm begins with.

    Args:
        arm: a name in `STATIC` or ``plans``.
        anatomy: of the base.
        case: gives the budget.
        plans: further arms → placements with every rank written, one for each scan seed.
        seed: of the run; seeds take the scans in turn.
    """
    if arm in plans:
        return place(anatomy, plans[arm][seed % len(plans[arm])])
    return place(anatomy, STATIC[arm], budget=case.budget)


def hooks_of(arm: str, case: Case) -> Sequence[RunHook]:
    """What decides inside the run; nothing for a static arm."""
    return ()


def describe(plan: Plan) -> dict[str, Any]:
    """What a record keeps of a plan."""
    return {"placement": plan.text, "trainable": plan.trainable}
