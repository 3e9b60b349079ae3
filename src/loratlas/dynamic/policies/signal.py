"""Policies by what the frozen base says: the gradient of its weights, and how far attention moves."""

from __future__ import annotations

from typing import final

from loratlas.dynamic.policies.base import ScorePolicy, departures_of
from loratlas.dynamic.run_evidence import Evidence, Measured


@final
class GradientPolicy(ScorePolicy):
    """Ranks where the loss could still fall: v is the `gradient` of `loratlas.signals.gradient`, Σ_j σ_j ‖u_j‖₁ of the
    leading directions of the weight's gradient, at the weights as they are now; sites without an adapter have one too.

    Halves: even and odd samples.

    Source: as there; taken within the run and not before it.
    """

    name = "gradient"
    needs = frozenset({"gradient"})

    def departures(self, evidence: Evidence) -> tuple[Measured, float] | None:
        return departures_of(evidence.measured.get("gradient"), evidence)


@final
class AttentionPolicy(ScorePolicy):
    """Ranks in the layers whose attention the run moves: v is the probability that patterns have moved by since the
    base, ½ Σ_s |P_ts − P⁰_ts|, mean over queries t, summed over heads.

    All sites of a layer's attention have the same v, so that layers exchange ranks and parts do not; sites outside of
    attention keep theirs. Halves: even and odd rows.

    Source: ours; total variation distance of patterns under the run's own update.
    """

    name = "attention"
    needs = frozenset({"attention"})

    def departures(self, evidence: Evidence) -> tuple[Measured, float] | None:
        return departures_of(evidence.measured.get("attention"), evidence)
