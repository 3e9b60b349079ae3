"""What can be trained in a case: static placements, rules' plans, and policies that decide inside the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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

STARTED: Mapping[str, str] = {"all_eva": "all"}
"""The same of arms whose adapters begin in a way of their own (`benchmarks.dynamic.rule_plans.start`): as EVA's do."""

Plans = Mapping[str, Sequence[str]]
"""Arm of a rule → placements with every rank written, one for each scan seed."""

Policies = Mapping[str, Mapping[str, Any]]
"""Arm → ``policy`` (a name in `loratlas.dynamic.policies.known_policies`), ``head`` (share of the judged steps), and
where given ``every`` (steps between later decisions), ``most`` (sites that one decision may change) and ``init`` (where
adapters begin)."""


def plan_of(
    arm: str,
    anatomy: Anatomy,
    budget: str,
    *,
    seed: int,
    plans: Plans | None = None,
    policies: Policies | None = None,
) -> Plan:
    """The plan that an arm begins with.

    Args:
        arm: a name in `STATIC`, `STARTED`, ``plans`` or ``policies``.
        anatomy: of the base. budget: that every arm spends.
        seed: of the run; seeds take the scans of a rule in turn.
        plans, policies: further arms; policies begin with the reference, at their peak of parameters.
    """
    if plans and arm in plans:
        return place(anatomy, plans[arm][seed % len(plans[arm])])
    if policies and arm in policies:
        from loratlas.dynamic.policies.known_policies import policy_named

        reference = place(anatomy, STATIC[REFERENCE], budget=budget)
        peak = policy_named(policies[arm]["policy"]).peak
        if peak > 1:
            return place(anatomy, STATIC[REFERENCE], budget=f"params={int(peak * reference.trainable)}")
        return reference
    return place(anatomy, {**STATIC, **STARTED}[arm], budget=budget)


def hooks_of(
    arm: str, anatomy: Anatomy, budget: str, *, steps: int, policies: Policies | None = None
) -> Sequence[RunHook]:
    """What decides inside the run; nothing for a static arm.

    Args:
        arm, anatomy, budget, policies: as of `plan_of`.
        steps: judged; the head is a share of them.
    """
    if not policies or arm not in policies:
        return ()
    from loratlas.dynamic.controller import PlacementController
    from loratlas.dynamic.decision_schedule import DecisionSchedule
    from loratlas.dynamic.policies.known_policies import policy_named
    from loratlas.scan.plan_from_scores import candidates

    settings = policies[arm]
    policy = policy_named(settings["policy"])
    return [
        PlacementController(
            candidates(anatomy),
            policy,
            budget=place(anatomy, STATIC[REFERENCE], budget=budget).trainable,
            schedule=DecisionSchedule(
                head=max(4, round(settings["head"] * steps)), every=settings.get("every"), peak=policy.peak
            ),
            most=settings.get("most"),
        )
    ]
