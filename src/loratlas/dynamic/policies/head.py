"""Policies by what the run's own steps did: how far sites went, and what the loss gained by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from loratlas.dynamic.policies.base import ScorePolicy, agreement, departures_of
from loratlas.dynamic.run_evidence import Evidence, Measured, kappa, standardised


@final
class Energy(ScorePolicy):
    """Ranks where the update went far: v = ‖ΔW_end − ΔW_start‖²_F, over the steps since the last decision.

    Halves: the update of the first half of these steps, and that of the second.

    Source: ours; learned energies order placements best of what was tried (docs/journal.md).
    """

    name = "energy"

    def departures(self, evidence: Evidence) -> tuple[Measured, float] | None:
        return departures_of(evidence.measured.get("energy"), evidence)


@final
class Descent(ScorePolicy):
    """Ranks where the loss fell: v = −Σ_t ⟨g_{t+1}, θ_{t+1} − θ_t⟩ over the later half of the steps.

    Halves: even and odd steps.

    Source: loss change allocation (Lan et al. 2019, arXiv:1909.01440), see
    `loratlas.training.loss_change.LossChangeAllocation`.
    """

    name = "descent"

    def departures(self, evidence: Evidence) -> tuple[Measured, float] | None:
        return departures_of(evidence.measured.get("descent"), evidence)


@final
class Weighted(ScorePolicy):
    """Energies and descents together, each by how reliable it is in this run.

        x = σ (κ_E z(x_E) + κ_D z(x_D)) / (κ_E + κ_D),     κ = τ/(1 − τ)

    with τ between the halves of either statistic, z standardised over the sites, and σ their standard deviations' mean
    with the same weights, 1 at most. Where neither repeats, nothing moves.

    Source: ours; weights as in combining two measurements of one quantity by their reliabilities.
    """

    name = "weighted"

    def departures(self, evidence: Evidence) -> tuple[Measured, float] | None:
        each = [departures_of(evidence.measured.get(name), evidence) for name in ("energy", "descent")]
        known = [(measured, kappa(tau)) for measured, tau in (f for f in each if f is not None)]
        total = sum(weight for _, weight in known)
        if not known or not total:
            return None
        spread = min(1.0, sum(weight * _deviation(m.whole) for m, weight in known) / total)

        def mean(which: str) -> dict[str, float]:
            standard = [(standardised(getattr(m, which)), weight) for m, weight in known]
            paths = [p for p in standard[0][0] if all(p in z for z, _ in standard)]
            return {p: spread * sum(weight * z[p] for z, weight in standard) / total for p in paths}

        combined = Measured(whole=mean("whole"), first=mean("first"), second=mean("second"))
        return combined, agreement(combined.first, combined.second)


def _deviation(values: Mapping[str, float]) -> float:
    n = len(values)
    mean = sum(values.values()) / n
    return (sum((value - mean) ** 2 for value in values.values()) / n) ** 0.5
