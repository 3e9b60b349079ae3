"""What every policy is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from loratlas.dynamic.moves import Decided, Scored, improved
from loratlas.dynamic.run_evidence import Evidence, Measured, common, pooled
from loratlas.signals.rank_correlation import tau


class Policy(ABC):
    """A rule that turns what a run's steps said about its sites into new ranks.

    A subclass is final. Its docstring says: formula, source, departures.

    Attributes:
        name: as people write it.
        needs: statistics beside those that cost nothing (energy, descent, curvature): any of ``"sensitivity"``,
            ``"gradient"``, ``"attention"``.
        peak: parameters at the start over those at the end that the rule wants.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    peak: ClassVar[float] = 1.0

    @abstractmethod
    def decide(self, evidence: Evidence, *, allowed: int, most: int) -> Decided:
        """New ranks.

        Args:
            evidence: what is known.
            allowed: parameters afterwards, at most.
            most: sites that may change; published rules, which know no such limit, leave it aside.
        """


class ScorePolicy(Policy):
    """A policy that gives every site a score, and exchanges ranks by it (`loratlas.dynamic.moves`).

    What counts is how far a site's statistic v departs from what its parameters would give it if ranks were right as
    they are. With c the price of a rank and r the site's rank,

        x = log v − log(c √r)

    and the score is c √r · exp(x̂), where x̂ is x drawn towards the means of its role and depth, and then towards 0, by
    how far two halves of the steps agree: ρ = 2τ/(1 + τ), Spearman and Brown (`loratlas.dynamic.run_evidence.pooled`).
    With halves that agree by chance alone x̂ is 0, and no exchange gains anything.
    """

    @abstractmethod
    def departures(self, evidence: Evidence) -> tuple[Measured, float] | None:
        """(x of every site, τ between its halves); None where there is nothing to go by."""

    def decide(self, evidence: Evidence, *, allowed: int, most: int) -> Decided:
        differing = self.departures(evidence)
        if differing is None:
            return Decided(ranks=dict(evidence.ranks), reasons={}, gains={}, note="no signal")
        departures, agreement = differing
        sites = tuple(site for site in evidence.sites if site.path in departures.whole)
        rho = 2 * agreement / (1 + agreement)
        usual = usual_scores(evidence)

        def scores(x: Mapping[str, float]) -> dict[str, float]:
            drawn = pooled(x, sites, rho)
            middle = sum(drawn.values()) / len(drawn)
            return {path: usual[path] * math.exp(rho * (value - middle)) for path, value in drawn.items()}

        scored = Scored(
            whole=scores(departures.whole),
            first=scores(departures.first),
            second=scores(departures.second),
        )
        decided = improved(
            evidence.sites, evidence.ranks, scored, allowed=allowed, most=most, ceiling=evidence.ceiling
        )
        note = f"{self.name}: two halves of the steps agree by τ = {agreement:.2f}"
        return Decided(ranks=decided.ranks, reasons=decided.reasons, gains=decided.gains, note=note)


def usual_scores(evidence: Evidence) -> dict[str, float]:
    """Path → c √r: the scores under which ranks are right as they are. A site without an adapter counts as one of
    rank 1/16, so that its first rank has to be worth four times as much as others' to begin with."""
    prices = evidence.prices
    return {path: prices[path] * max(math.sqrt(rank), 0.25) for path, rank in evidence.ranks.items()}


def departure(values: Mapping[str, float], evidence: Evidence) -> dict[str, float]:
    """x of every site; what is 0 or below counts as a twentieth of the least that is above 0."""
    usual = usual_scores(evidence)
    above = [value / usual[path] for path, value in values.items() if value > 0]
    floor = min(above, default=1.0) / 20
    return {path: math.log(value / usual[path] if value > 0 else floor) for path, value in values.items()}


def departures_of(measured: Measured | None, evidence: Evidence) -> tuple[Measured, float] | None:
    """(x from one statistic, τ between its halves); None where nothing was measured."""
    if measured is None or not any(value > 0 for value in measured.whole.values()):
        return None
    paths = [p for p in measured.whole if p in measured.first and p in measured.second]
    whole, first, second = (
        departure({path: values[path] for path in paths}, evidence)
        for values in (measured.whole, measured.first, measured.second)
    )
    return Measured(whole=whole, first=first, second=second), agreement(first, second)


def agreement(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """τ between two halves, 0 at least."""
    one, two = common(first, second)
    correlation = tau(one, two)
    return max(correlation, 0.0) if math.isfinite(correlation) else 0.0
