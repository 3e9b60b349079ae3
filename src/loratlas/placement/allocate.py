r"""Allocation: what each further rank adds at each site, and a budget, become ranks.

    maximise Σ_i Σ_{j ≤ r_i} gain_i(j)   subject to   cost(r) ≤ budget

Ranks are given out one step at a time, each to the site where it adds most per unit of cost. Where the gains of a site
do not fall from step to step they are pooled with the steps before them until they do (the least concave function
above them), and such steps are taken together.

For concave gains and a cost of so much per rank, the ranks after any number of steps are exactly the best for what has
been spent by then. When the next step no longer fits, cheaper ones are still taken: the end is within the gain of one
step of the best.

Costs are those of :mod:`loratlas.placement.budget`: parameters, FLOPs per token, or bytes at the peak. The last two
depend on how far down the backward pass must go, so that every lowest layer is tried and the one that gains most kept.

>>> from loratlas.anatomy.sites import Anatomy, Site
>>> sites = tuple(Site(path=f"h.{i}.q.weight", module=f"h.{i}.q", layer=i, scope="decoder", role="attn.q",
...                    shape=(8, 8), kind="linear") for i in range(3))
>>> anatomy = Anatomy(model="toy", model_type="toy", parameters=512, layers=3, sites=sites, config_digest="0",
...                   hidden=8, vocabulary=9, heads=1)
>>> gains = {"h.0.q.weight": [4, 3, 1], "h.1.q.weight": [2, 1], "h.2.q.weight": [0, 0]}
>>> allocate(anatomy, gains, "params=48").ranks
{'h.0.q.weight': 2, 'h.1.q.weight': 1}
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loratlas.anatomy.sites import Anatomy, Site
from loratlas.errors import BudgetError, SettingsError
from loratlas.placement.budget import (
    UNITS,
    Budget,
    Memory,
    allowance,
    cost_of_ranks,
    parse_budget,
    rank_costs,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """Ranks that spend a budget.

    Args:
        ranks: path → rank, at least 1, in the model's order.
        reasons: path → why it got its rank, in a sentence.
        left_out: path → why it got none.
        gain: what all ranks add, in the unit of the gains.
        spent: cost of the ranks; allowed: the budget; both in the budget's unit.
        lowest: the lowest layer that carries an adapter; None where none stands in a layer.
        budget: as text.
    """

    ranks: dict[str, int]
    reasons: dict[str, str]
    left_out: dict[str, str]
    gain: float
    spent: int
    allowed: int
    lowest: int | None
    budget: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an allocation has to keep to besides its budget.

    Args:
        floor: ranks that every site gets, before anything is given out.
        ceiling: most ranks of a site; None for what its matrix allows.
        multiple: ranks are multiples of this; 8 where kernels want it.
        whole_layers: all sites of a layer get the same rank.
        top: only so many layers from the output's end; None for all, or, of a budget of time or memory, as many as
            gain most.
    """

    floor: int = 0
    ceiling: int | None = None
    multiple: int = 1
    whole_layers: bool = False
    top: int | None = None

    def __post_init__(self) -> None:
        for name, value, least in (("floor", self.floor, 0), ("multiple", self.multiple, 1)):
            if value < least:
                raise SettingsError(
                    given=f"{name} {value}", found="no count", instead=f"{name} of {least} or more"
                )
        if self.ceiling is not None and self.ceiling < max(self.floor, self.multiple):
            raise SettingsError(
                given=f"a ceiling of {self.ceiling}",
                found=f"ranks begin at {max(self.floor, self.multiple)}",
                instead=f"a ceiling of {max(self.floor, self.multiple)} or more",
            )
        if self.floor % self.multiple:
            raise SettingsError(
                given=f"a floor of {self.floor}",
                found=f"ranks that are multiples of {self.multiple}",
                instead=f"a multiple of {self.multiple}",
            )
        if self.top is not None and self.top < 1:
            raise SettingsError(given=f"top {self.top}", found="no layer left", instead="1 or more")


def allocate(
    anatomy: Anatomy,
    gains: Mapping[str, Sequence[float]],
    budget: str | Budget,
    limits: Limits | None = None,
    memory: Memory | None = None,
) -> Allocation:
    """Spend a budget where it gains most.

    Args:
        anatomy: of the model.
        gains: path → what rank 1, 2, … adds; sites that are missing get nothing. A rank beyond the end adds nothing.
        budget: what may be spent.
        limits: see `Limits`.
        memory: tells peak bytes, for a budget of memory.

    Raises:
        BudgetError: the budget does not parse, nothing tells its memory, or it is smaller than the first step at every
            site (or than the floor).
        SettingsError: no site has a gain, or limits that contradict each other.
    """
    limits = limits or Limits()
    budget = parse_budget(budget) if isinstance(budget, str) else budget
    allowed = allowance(budget, anatomy, memory)
    sites = [site for site in anatomy.sites if site.path in gains]
    if not any(gain > 0 for site in sites for gain in gains[site.path]):
        raise SettingsError(
            given=f"gains at {len(sites)} sites",
            found="no signal: nothing is above 0 anywhere",
            instead="a placement in words, such as all, or another signal",
        )
    cuts = _cuts(anatomy, sites, budget, limits)
    best: Allocation | None = None
    least: list[int] = []
    for cut in cuts:
        inside = [site for site in sites if site.layer is None or site.layer >= cut]
        allocation = _Allocator(anatomy, inside, gains, budget, allowed, limits, memory).spend(least)
        if allocation is not None and (best is None or allocation.gain > best.gain):
            best = allocation
    if best is None:
        raise BudgetError(
            given=f"a budget of {budget.text} ({allowed:,} {UNITS[budget.quantity]})",
            found=f"the smallest step anywhere costs {min(least):,} {UNITS[budget.quantity]}"
            + (f", every site having rank {limits.floor} at least" if limits.floor else ""),
            instead=f"at least {min(least):,}"
            + (", or a smaller floor or multiple" if limits.floor > 1 or limits.multiple > 1 else ""),
        )
    return best


def _cuts(anatomy: Anatomy, sites: Sequence[Site], budget: Budget, limits: Limits) -> list[int]:
    """Lowest layers to try."""
    layers = sorted({site.layer for site in sites if site.layer is not None}) or [0]
    if limits.top is not None:
        return [max(layers[-1] + 1 - limits.top, layers[0])]
    return layers[:1] if budget.quantity == "params" else layers


@dataclass(frozen=True, slots=True)
class _Step:
    """Some ranks of a unit that are taken together."""

    ranks: int
    gain: float


class _Allocator:
    """Gives ranks to units: single sites, or layers whose sites go together."""

    def __init__(
        self,
        anatomy: Anatomy,
        sites: Sequence[Site],
        gains: Mapping[str, Sequence[float]],
        budget: Budget,
        allowed: int,
        limits: Limits,
        memory: Memory | None,
    ) -> None:
        self.memory = memory
        self.anatomy, self.sites, self.gains = anatomy, sites, gains
        self.budget, self.allowed, self.limits = budget, allowed, limits
        self.units = self._units()
        self.steps = {name: self._steps_of(name) for name in self.units}
        self.taken: dict[str, list[_Step]] = {name: [] for name in self.units}

    def _units(self) -> dict[str, list[Site]]:
        units: dict[str, list[Site]] = {}
        for site in self.sites:
            whole = self.limits.whole_layers and site.layer is not None
            units.setdefault(f"{site.scope} {site.layer}" if whole else site.path, []).append(site)
        return units

    def _steps_of(self, name: str) -> list[_Step]:
        """Steps whose gain per rank never rises, the floor apart."""
        unit, limits = self.units[name], self.limits
        most = min(min(site.max_rank for site in unit), limits.ceiling or 1 << 30)
        most -= most % limits.multiple

        def gain(first: int, end: int) -> float:
            return sum(sum(self.gains[site.path][first:end]) for site in unit)

        longest = max(len(self.gains[site.path]) for site in unit)
        steps: list[_Step] = []
        for first in range(min(limits.floor, most), min(most, longest), limits.multiple):
            steps.append(_Step(limits.multiple, max(gain(first, first + limits.multiple), 0.0)))
            while len(steps) > 1 and steps[-1].gain * steps[-2].ranks > steps[-2].gain * steps[-1].ranks:
                last, before = steps.pop(), steps.pop()
                steps.append(_Step(last.ranks + before.ranks, last.gain + before.gain))
        return [step for step in steps if step.gain > 0]

    def ranks(self) -> dict[str, int]:
        """Path → rank as it stands."""
        ranks = {}
        for name, unit in self.units.items():
            for site in unit:
                floor = min(self.limits.floor, site.max_rank - site.max_rank % self.limits.multiple)
                rank = floor + sum(step.ranks for step in self.taken[name])
                if rank:
                    ranks[site.path] = rank
        return {site.path: ranks[site.path] for site in self.sites if site.path in ranks}

    def spend(self, least: list[int]) -> Allocation | None:
        """Take steps until none fits; None, and what would have been needed, where not even one does."""
        if not any(self.steps.values()) and not self.limits.floor:
            return None
        start = self._cost(self.ranks())
        if self.limits.floor and start > self.allowed:
            least.append(start)
            return None
        if self.budget.quantity == "params":
            prices = {
                name: sum(site.lora_parameters(1) for site in unit) for name, unit in self.units.items()
            }
            self._greedy(prices, self.allowed - start)
            spent = self._cost(self.ranks())
        else:
            prices, spent = self._by_arithmetic()
        ranks = self.ranks()
        if not ranks or spent > self.allowed:
            least.append(
                min(self._cost(self._first(name)) for name in self.units if self.steps[name])
                if not self.limits.floor
                else start
            )
            return None
        return self._allocated(ranks, prices, spent)

    def _first(self, name: str) -> dict[str, int]:
        return {site.path: self.steps[name][0].ranks for site in self.units[name]}

    def _cost(self, ranks: Mapping[str, int]) -> int:
        return cost_of_ranks(self.anatomy, ranks, self.budget.quantity, self.memory) if ranks else 0

    def _by_arithmetic(self) -> tuple[dict[str, float], int]:
        """Costs that are not the same whatever else is adapted: priced as if every site took part, which is the most
        they can be, then again with what is really adapted, until nothing more fits."""
        everything = {site.path: 1 for site in self.sites}
        slope = rank_costs(self.anatomy, everything, self.sites, self.budget.quantity, self.memory)
        prices: dict[str, float] = {
            name: sum(slope[site.path] for site in unit) for name, unit in self.units.items()
        }
        fixed = self._cost(everything) - sum(slope.values())
        ranks = self.ranks()
        left = self.allowed - max(self._cost(ranks), fixed + sum(slope[p] * r for p, r in ranks.items()))
        while True:
            before = self.ranks()
            self._greedy(prices, left)
            ranks = self.ranks()
            spent = self._cost(ranks)
            if ranks == before or spent > self.allowed:
                break
            left = self.allowed - spent
        if not ranks:
            self._first_that_fits()
            spent = self._cost(self.ranks())
        return prices, spent

    def _first_that_fits(self) -> None:
        """One step at the unit that gains most among those whose first step is within the budget by itself."""
        able = [
            n for n in self.units if self.steps[n] and self._cost(self._first(n)) <= self.allowed
        ]  # fmt: skip
        if able:
            best = max(able, key=lambda name: self.steps[name][0].gain)
            self.taken[best].append(self.steps[best][0])

    def _greedy(self, prices: Mapping[str, float], left: float) -> None:
        """Take steps, best first, while they fit into what is left. Of two that gain equally much per cost the dearer
        one comes first: the cheaper one may still fit afterwards, and not the other way round."""
        queue: list[tuple[float, float, int, str]] = []
        order = {name: index for index, name in enumerate(self.units)}

        def offer(name: str) -> None:
            index = len(self.taken[name])
            if index < len(self.steps[name]):
                step = self.steps[name][index]
                worth = step.gain / (step.ranks * prices[name]) if prices[name] else float("inf")
                heapq.heappush(queue, (-worth, -step.ranks * prices[name], order[name], name))

        for name in self.units:
            offer(name)
        while queue:
            *_, name = heapq.heappop(queue)
            step = self.steps[name][len(self.taken[name])]
            if step.ranks * prices[name] <= left:
                left -= step.ranks * prices[name]
                self.taken[name].append(step)
                offer(name)

    def _allocated(self, ranks: dict[str, int], prices: Mapping[str, float], spent: int) -> Allocation:
        unit = UNITS[self.budget.quantity]

        def worth(name: str, step: _Step) -> float:
            return 1000 * step.gain / (step.ranks * prices[name]) if prices[name] else float("inf")

        last = {name: worth(name, taken[-1]) for name, taken in self.taken.items() if taken}
        cut = min(last.values(), default=0.0)
        reasons, left_out = {}, {}
        for name, members in self.units.items():
            taken = self.taken[name]
            following = self.steps[name][len(taken)] if len(taken) < len(self.steps[name]) else None
            for site in members:
                if site.path not in ranks:
                    left_out[site.path] = (
                        f"its first rank adds {worth(name, following):.3g} per 1,000 {unit}; "
                        f"the budget ended at {cut:.3g}"
                        if following is not None
                        else "nothing to gain"
                    )
                    continue
                parts = []
                if self.limits.floor:
                    parts.append(f"every site has {self.limits.floor}")
                if taken:
                    parts.append(
                        f"its last rank adds {last[name]:.3g} per 1,000 {unit}; the budget ended at {cut:.3g}"
                    )
                if following is None and taken:
                    parts.append("no further rank could add anything")
                if len(members) > 1:
                    parts.append("counted with its whole layer")
                reasons[site.path] = "; ".join(parts) or "the floor"
        layers = [s.layer for s in self.sites if s.path in ranks and s.layer is not None]
        return Allocation(
            ranks=ranks,
            reasons=reasons,
            left_out=left_out,
            gain=sum(step.gain for taken in self.taken.values() for step in taken)
            + sum(
                sum(self.gains[site.path][: self.limits.floor]) for site in self.sites if self.limits.floor
            ),
            spent=spent,
            allowed=self.allowed,
            lowest=min(layers, default=None),
            budget=self.budget.text,
        )
