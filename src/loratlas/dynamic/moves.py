"""Changes of rank: which are worth making, and the record of those that were made.

What rank r is worth at a site is s √r, s its score. From the ranks as they are, the best next rank anywhere is paid for
by the cheapest last ranks elsewhere, one exchange after the other:

    gain = s_i (√(r_i + 1) − √r_i) − Σ_j s_j (√r_j − √(r_j − 1)),    its noise = |gain₁ − gain₂| / 2

with gain₁ and gain₂ from the scores of either half. An exchange that does not gain more than its noise is not made
(hysteresis), so that without evidence ranks stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from loratlas.anatomy.sites import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One change of one site's rank.

    Args:
        step: steps done.
        path: of the site.
        before, after: rank.
        reason: in words.
        price: parameters that it takes up more, or fewer (below 0).
        gain: what the policy expected of it, in the unit of its scores; None where it has no such number.
        lost: share of the site's ‖ΔW‖² that went with dropped directions.
        loss_before, loss_after: mean loss of the next step's rows right before and right after the decision that the
            move belongs to, nats per counted token.
    """

    step: int
    path: str
    before: int
    after: int
    reason: str
    price: int
    gain: float | None = None
    lost: float = 0.0
    loss_before: float | None = None
    loss_after: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Scores of sites: from all steps, and from two halves of them; above 0."""

    whole: Mapping[str, float]
    first: Mapping[str, float]
    second: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What a policy wants.

    Args:
        ranks: path → rank of every site, 0 included.
        reasons: path → why, of sites whose rank changes.
        gains: path → expected gain of the change, where there is such a number.
        note: a sentence about the decision as a whole.
    """

    ranks: dict[str, int]
    reasons: dict[str, str]
    gains: dict[str, float]
    note: str = ""


def worth(rank: int) -> float:
    """What a rank is worth per unit of score: √r."""
    return math.sqrt(rank)


def improved(
    sites: tuple[Site, ...],
    ranks: Mapping[str, int],
    scores: Scored,
    *,
    allowed: int,
    most: int,
    ceiling: int,
) -> Decided:
    """Exchange ranks as long as that gains more than its noise.

    Args:
        sites: that may change; those without a score keep their rank.
        ranks: path → rank now.
        scores: of the sites.
        allowed: parameters afterwards, at most; where there are more now, the least valuable go, noise or not.
        most: sites that may change.
        ceiling: most ranks of a site.

    Example:
        >>> a, b = (Site(path=f"{n}.weight", module=n, layer=0, scope="decoder", role="attn.q", shape=(8, 8),
        ...              kind="linear") for n in "ab")
        >>> alike = {"a.weight": 9.0, "b.weight": 1.0}
        >>> sure = Scored(whole=alike, first=alike, second=alike)
        >>> improved((a, b), {"a.weight": 2, "b.weight": 2}, sure, allowed=64, most=9, ceiling=8).ranks
        {'a.weight': 4, 'b.weight': 0}
        >>> unsure = Scored(whole=sure.whole, first={"a.weight": 18.0, "b.weight": 0.1},
        ...                 second={"a.weight": 0.1, "b.weight": 18.0})
        >>> improved((a, b), {"a.weight": 2, "b.weight": 2}, unsure, allowed=64, most=9, ceiling=8).ranks
        {'a.weight': 2, 'b.weight': 2}
    """
    return _Exchange(sites, ranks, scores, allowed, most, ceiling).run()


class _Exchange:
    """Ranks on their way to better ones."""

    def __init__(
        self,
        sites: tuple[Site, ...],
        ranks: Mapping[str, int],
        scores: Scored,
        allowed: int,
        most: int,
        ceiling: int,
    ) -> None:
        self.price = {site.path: site.lora_parameters(1) for site in sites}
        self.limit = {site.path: min(site.max_rank, ceiling) for site in sites}
        self.known = [site.path for site in sites if site.path in scores.whole]
        self.before, self.ranks, self.scores = dict(ranks), dict(ranks), scores
        self.allowed, self.most = allowed, most
        self.left = allowed - sum(self.price[path] * rank for path, rank in self.ranks.items())

    def run(self) -> Decided:
        self._shrink()
        blocked: set[str] = set()
        while True:
            taker = self._best(blocked)
            if taker is None:
                break
            givers = self._payers(taker)
            if givers is None or not self._worthwhile(taker, givers):
                blocked.add(taker)
                continue
            for path in givers:
                self._step(path, -1)
            self._step(taker, 1)
        return self._decided()

    def _step(self, path: str, by: int) -> None:
        self.ranks[path] += by
        self.left -= by * self.price[path]

    def _changed(self) -> set[str]:
        return {path for path, rank in self.ranks.items() if rank != self.before[path]}

    def _value(self, path: str, rank: int, scores: Mapping[str, float] | None = None) -> float:
        """What the step from ``rank`` − 1 to ``rank`` is worth."""
        return (self.scores.whole if scores is None else scores)[path] * (worth(rank) - worth(rank - 1))

    def _shrink(self) -> None:
        """Give up the least valuable ranks while there are too many."""
        while self.left < 0:
            able = [path for path in self.known if self.ranks[path] > 0]
            if sum(self.ranks.values()) <= 1 or not able:
                return
            self._step(min(able, key=lambda p: self._value(p, self.ranks[p]) / self.price[p]), -1)

    def _best(self, blocked: set[str]) -> str | None:
        """The site whose next rank is worth most per parameter, of those that may still change and have not given."""
        changed = self._changed()
        able = [
            path
            for path in self.known
            if path not in blocked
            and self.ranks[path] < self.limit[path]
            and self.ranks[path] >= self.before[path]
            and (path in changed or len(changed) < self.most)
        ]
        return max(able, key=lambda p: self._value(p, self.ranks[p] + 1) / self.price[p], default=None)

    def _payers(self, taker: str) -> list[str] | None:
        """Sites that give up a rank each so that the taker's next one fits; None where not enough can."""
        missing = self.price[taker] - self.left
        ranks, changed = dict(self.ranks), self._changed() | {taker}
        givers: list[str] = []
        while missing > 0:
            able = [
                path
                for path in self.known
                if path != taker
                and 0 < ranks[path] <= self.before[path]
                and (path in changed or len(changed) < self.most)
            ]
            if not able:
                return None
            giver = min(able, key=lambda p: self._value(p, ranks[p]) / self.price[p])
            givers.append(giver)
            ranks[giver] -= 1
            changed.add(giver)
            missing -= self.price[giver]
        return givers

    def _worthwhile(self, taker: str, givers: list[str]) -> bool:
        """Whether the exchange gains more than its noise."""

        def gain(scores: Mapping[str, float]) -> float:
            ranks = dict(self.ranks)
            total = self._value(taker, ranks[taker] + 1, scores)
            for path in givers:
                total -= self._value(path, ranks[path], scores)
                ranks[path] -= 1
            return total

        noise = abs(gain(self.scores.first) - gain(self.scores.second)) / 2
        return gain(self.scores.whole) > noise

    def _decided(self) -> Decided:
        reasons, gains = {}, {}
        for path in self._changed():
            old, new = self.before[path], self.ranks[path]
            gains[path] = self.scores.whole[path] * (worth(new) - worth(old))
            last = 1000 * self._value(path, max(new, old)) / self.price[path]
            reasons[path] = (
                f"its last rank is worth {last:.3g} per 1,000 parameters"
                if new > old
                else f"its last rank was worth {last:.3g} per 1,000 parameters, less than elsewhere"
            )
        return Decided(ranks=self.ranks, reasons=reasons, gains=gains)
