"""From scores to a plan: what every rank of a site adds by a column, and a budget distributed by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from loratlas.anatomy.sites import Anatomy, Site
from loratlas.errors import ModelError, SettingsError
from loratlas.placement.allocate import Allocation, Limits, allocate
from loratlas.placement.budget import LIKE, parse_budget
from loratlas.placement.language import parse
from loratlas.placement.plan import Plan, plan_of_allocation
from loratlas.placement.resolve import resolve
from loratlas.placement.round_ranks import round_ranks as rounded
from loratlas.scan.scores import GAINS, Scan

if TYPE_CHECKING:
    from loratlas.placement.budget import Memory
    from loratlas.signals.measure_signals import Reading

AUTO = "auto"
"""The placement that is decided by measurement: in the run's own first steps, or by an earlier scan's scores."""

SCAN = "scan"
"""The placement of a study's arm that a scan decides before the arm is trained."""


def is_auto(placement: str | None) -> bool:
    """Whether a placement is left to measurement.

    >>> is_auto(" auto "), is_auto("all:auto"), is_auto(None)
    (True, False, False)
    """
    return placement is not None and placement.strip() == AUTO


def is_scan(placement: str | None) -> bool:
    """Whether a placement is left to a scan of its own.

    >>> is_scan("scan"), is_scan("auto")
    (True, False)
    """
    return placement is not None and placement.strip() == SCAN


def candidates(anatomy: Anatomy, among: str = "all") -> list[Site]:
    """The sites that a scan may choose from.

    Args:
        anatomy: of the model.
        among: a placement; ranks in it are not looked at.

    Raises:
        PlacementError: it finds nothing.
        SettingsError: a site that no signal can be measured at.
    """
    sites = [site for site, _ in resolve(parse(among), anatomy, default="auto")]
    odd = [site for site in sites if site.kind == "embedding"]
    if odd:
        raise SettingsError(
            given=f"a scan among {among}",
            found=f"{odd[0].module} looks rows up; signals are measured at matrices that multiply",
            instead="all, or roles inside the layers",
        )
    return sites


def check_budget(anatomy: Anatomy, budget: str, *, among: str = "all", limits: Limits | None = None) -> None:
    """Refuse a budget that holds no step at any site, before anything is measured.

    Budgets of memory are let through: a dry run measures them, which costs as much as a plan.

    Raises:
        BudgetError: so, or the budget does not parse.
        PlacementError, SettingsError: see `candidates`.
    """
    parsed, sites = parse_budget(budget), candidates(anatomy, among)
    if parsed.quantity != "memory":
        limits = limits or Limits()
        any_gain = [1.0] * (limits.floor + limits.multiple)
        allocate(anatomy, {site.path: any_gain for site in sites}, parsed, limits)


def gains(reading: Reading, sites: Sequence[Site], *, ranks: int = 4 * GAINS) -> dict[str, list[float]]:
    """Path → what rank 1, 2, … adds by a column.

    A column with one number per site counts it as √r: v·(√j − √(j − 1)) for rank j. Of a column in which low values pay
    it is 1/v that counts.
    """
    if reading.gains is not None:
        return {site.path: list(reading.gains[site.path]) for site in sites if site.path in reading.gains}
    root = np.diff(np.sqrt(np.arange(ranks + 1)))
    by_path = {}
    for site in sites:
        value = reading.values.get(site.path)
        if value is not None:
            worth = max(value, 0.0) if reading.column.pays == "high" else 1 / max(value, 1e-12)
            by_path[site.path] = (worth * root[: site.max_rank]).tolist()
    return by_path


def plan_from(
    scan: Scan,
    anatomy: Anatomy,
    *,
    budget: str | None = None,
    by: str | None = None,
    among: str = "all",
    limits: Limits | None = None,
    alpha: float | None = None,
    rslora: bool = False,
    round_ranks: bool = False,
    memory: Memory | None = None,
) -> tuple[Plan, Allocation]:
    """Distribute a budget by a scan's scores.

    Args:
        scan: of this model.
        anatomy: of the model.
        budget: what may be used; None for `LIKE`.
        by: the column that decides; None for the one that decided the scan.
        among: the sites to choose from.
        limits: see `loratlas.placement.allocate.Limits`.
        alpha, rslora, memory: as for `loratlas.placement.plan.place`.
        round_ranks: see `loratlas.placement.round_ranks`.

    Raises:
        ModelError: the scores are of another model.
        SettingsError: no signal, or a column that was not measured.
        BudgetError: see `loratlas.placement.allocate.allocate`.
    """
    if scan.config_digest != anatomy.config_digest:
        raise ModelError(
            given=f"scores of {scan.model} (config {scan.config_digest})",
            found=f"a model with another config: {anatomy.model} ({anatomy.config_digest})",
            instead=f"the scores of a scan of {anatomy.model}",
        )
    by = by or scan.by
    reading = scan.readings.get(by)
    if reading is None:
        raise SettingsError(
            given=f"a plan by {by}",
            found="it was not measured",
            instead=f"--by {scan.by}; measured were {', '.join(scan.readings)}",
        )
    if reading.silent is not None:
        raise SettingsError(
            given=f"a plan by {by} on {scan.source}",
            found=f"no signal: {reading.silent}",
            instead="a placement in words, such as all, other rows, or another signal (--by)",
        )
    allocation = allocate(anatomy, gains(reading, candidates(anatomy, among)), budget or LIKE, limits, memory)
    plan = plan_of_allocation(anatomy, allocation, alpha=alpha, rslora=rslora)
    if not round_ranks:
        return plan, allocation
    plan = rounded(plan, anatomy)
    # Of time and memory the cost before rounding is kept, which is an upper bound.
    spent = plan.trainable if parse_budget(budget or LIKE).quantity == "params" else allocation.spent
    return plan, replace(allocation, ranks=plan.ranks, spent=spent)
