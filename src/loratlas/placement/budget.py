"""Budgets: how much a plan may spend, and the ranks that spend it.

The law: spent ≤ budget; what is left buys no further rank at any site; and a larger budget never spends less.

Ranks are solved in two steps. First the largest rank that all ``auto`` sites can have alike (no matrix gets more
than its smaller side). What is left is given out one rank at a time, site by site, in an order that depends on
the sites alone: layers spread over the depth (0, ½, ¼, ¾, …), and within a layer the model's own order; a site
whose next rank costs more than what is left is passed over. Parameters and time are affine in the ranks:
cost = c₀ + Σ rᵢ·mᵢ. Peak memory, which a dry run measures, is nearly so: a step is what one more rank at all sites
costs, shared out by parameters, and the table that comes out goes through one more dry run and gives back what proves
too much.

>>> parse_budget("params=1.5k"), parse_budget("like=attention:16").text
(Budget(quantity='params', amount=1500.0, share=None, like=None), 'like=attention:16')
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from loratlas.anatomy.sites import Anatomy, Site
from loratlas.errors import BudgetError, PlacementError, SettingsError
from loratlas.placement.language import parse
from loratlas.placement.resolve import DEFAULT_RANK, resolve
from loratlas.placement.terms import Placement

Quantity = Literal["params", "time", "memory"]
Memory: TypeAlias = Callable[[Mapping[str, int]], int]
"""What tells the peak bytes of a step with a table of ranks, rising in every rank; see
`loratlas.cost.peak_memory.PeakMemory`. Placement stands below training and cannot ask it by itself."""

UNITS = {"params": "trainable parameters", "time": "FLOPs per token", "memory": "bytes at the peak"}
_NUMBER = re.compile(r"(\d+(?:[_,]\d{3})*(?:\.\d+)?(?:e\d+)?)\s*([A-Za-z%]*)", re.IGNORECASE)
_COUNTS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}
_BYTES = {
    "": 1, "b": 1, "k": 1e3, "kb": 1e3, "m": 1e6, "mb": 1e6, "g": 1e9, "gb": 1e9, "t": 1e12, "tb": 1e12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_FORMS = (
    "params=2M, params=0.5%, like=attention:16, time=1.2 (times a step of all), time=PLACEMENT, "
    "memory=6GB or memory=PLACEMENT"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a plan may spend.

    Args:
        quantity: ``params`` (trainable), ``time`` (FLOPs per token, forward and backward, see
            :mod:`loratlas.anatomy.flops`) or ``memory`` (peak bytes of a step).
        amount: in the quantity's unit; or, of ``time``, as a multiple of what ``all`` at rank 16 takes.
        share: of the model's parameters instead, 1.0 being all of them.
        like: as much as this placement spends, instead.
    """

    quantity: Quantity
    amount: float | None = None
    share: float | None = None
    like: str | None = None

    @property
    def text(self) -> str:
        """As written."""
        if self.like is not None:
            return f"{'like' if self.quantity == 'params' else self.quantity}={self.like}"
        if self.share is not None:
            return f"{self.quantity}={self.share * 100:.12g}%"
        return f"{self.quantity}={self.amount:.15g}"


LIKE_OF = {"params": "like", "time": "time", "memory": "memory"}
"""Quantity → the word of the budget that says "as much of it as this placement costs"."""


LIKE = f"like=all:{DEFAULT_RANK}"
"""The budget where none is given: what `all` without a rank has."""


def parse_budget(text: str) -> Budget:
    """Read a budget.

    Args:
        text: ``params=2M|1.5k|123456|0.5%``, ``like=PLACEMENT``, ``time=RATIO|PLACEMENT``,
            ``memory=6GB|512MiB|PLACEMENT``. ``like`` counts parameters.

    Raises:
        BudgetError: neither of these.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or name not in ("params", "like", "time", "memory") or not value:
        raise BudgetError(
            given=f"--budget {text}", found="no quantity that a budget can limit", instead=_FORMS
        )
    number = _NUMBER.fullmatch(value)
    if name == "like" or (number is None and name in ("time", "memory")):
        return Budget(quantity="params" if name == "like" else name, like=parse(value).text)
    if number is None:
        raise BudgetError(given=f"--budget {text}", found=f"{value!r} is no amount", instead=_FORMS)
    amount, unit = float(number[1].replace("_", "").replace(",", "")), number[2].lower()
    units = {"params": _COUNTS | {"%": 0.01}, "time": {"": 1, "x": 1}, "memory": _BYTES}[name]
    if unit not in units:
        raise BudgetError(
            given=f"--budget {text}",
            found=f"{number[2]!r} is no unit of {name}",
            instead=f"one of {', '.join(u for u in units if u) or 'no unit'}",
        )
    if not 0 < amount < math.inf:
        raise BudgetError(given=f"--budget {text}", found="no amount", instead="an amount above 0")
    if unit == "%":
        return Budget(quantity="params", share=amount / 100)
    return Budget(quantity=name, amount=amount * units[unit])  # pyright: ignore[reportArgumentType]


def budget_text(budget: str | float | None) -> str | None:
    """A budget as text, from what a program may give: a whole number is one of parameters.

    Raises:
        BudgetError: something else.

    >>> budget_text(40_000), budget_text("like=all:8"), budget_text(None)
    ('params=40000', 'like=all:8', None)
    """
    if budget is None or isinstance(budget, str):
        return budget
    number = isinstance(budget, (int, float)) and not isinstance(budget, bool) and math.isfinite(budget)
    if not number or budget != int(budget) or budget < 1:
        raise BudgetError(given=f"budget={budget!r}", found="no whole number of parameters", instead=_FORMS)
    return f"params={int(budget)}"


def cost_of_ranks(
    anatomy: Anatomy, ranks: Mapping[str, int], quantity: Quantity, memory: Memory | None = None
) -> int:
    """What a table costs: parameters, FLOPs per token, or peak bytes.

    Args:
        anatomy: of the model.
        ranks: path → rank.
        quantity: which.
        memory: tells peak bytes.

    Raises:
        BudgetError: ``quantity`` is memory and nothing tells it.
    """
    if quantity == "params":
        return sum(site.lora_parameters(ranks[site.path]) for site in anatomy.sites if site.path in ranks)
    if quantity == "time":
        from loratlas.anatomy.flops import cost

        return cost(anatomy, ranks).flops_per_token
    if memory is None:
        raise BudgetError(
            given="a budget of memory",
            found="no batch, and a step's memory depends on it",
            instead="place(…, memory=loratlas.cost.peak_memory.PeakMemory.of_run(config, anatomy, rows, settings)), "
            "or a budget of params",
        )
    return memory(ranks)


def allowance(budget: Budget, anatomy: Anatomy, memory: Memory | None = None) -> int:
    """The most that may be spent, in the quantity's unit, rounded down.

    Raises:
        BudgetError: the placement to be matched asks for ``auto`` ranks itself.
    """
    if budget.share is not None:
        return math.floor(budget.share * anatomy.parameters + 1e-6)
    like = budget.like or ("all" if budget.quantity == "time" else None)
    if like is None:
        assert budget.amount is not None
        return math.floor(budget.amount)
    table = resolve(parse(like), anatomy, default=DEFAULT_RANK, allow_unresolved=True)
    if any(rank is None for _, rank in table):
        raise BudgetError(
            given=budget.text, found="a rank of auto in what is to be matched", instead="a number"
        )
    spent = cost_of_ranks(anatomy, {site.path: rank for site, rank in table if rank}, budget.quantity, memory)
    return math.floor(spent * budget.amount) if budget.like is None and budget.amount else spent


def solve(
    table: Sequence[tuple[Site, int | None]],
    budget: Budget,
    anatomy: Anatomy,
    memory: Memory | None = None,
    *,
    dora: bool = False,
) -> dict[str, int]:
    """Give every ``auto`` site a rank of at least 1, spending the budget.

    Args:
        table: (site, rank) with None for ``auto``, as :func:`~loratlas.placement.resolve.resolve` returns it.
        budget: what may be spent in all, the sites with given ranks included.
        anatomy: of the model.
        memory: tells peak bytes, for a budget of memory.
        dora: whether every site has DoRA's lengths as well, which count among its parameters.

    Returns:
        path → rank, in the order of the table.

    Raises:
        BudgetError: rank 1 everywhere, or the given ranks, cost more than the budget; the message has the least.
        SettingsError: DoRA under a budget of time or memory.
    """
    fixed = _lengths(table, budget) if dora else 0
    allowed = allowance(budget, anatomy, memory)
    auto = [site for site, rank in table if rank is None]
    ranks = {site.path: rank or 1 for site, rank in table}
    least = fixed + cost_of_ranks(anatomy, ranks, budget.quantity, memory)
    if least > allowed:
        unit, plain = UNITS[budget.quantity], budget.quantity == "params" and budget.amount is not None
        raise BudgetError(
            given=f"a budget of {budget.text}{'' if plain else f' ({allowed:,} {unit})'}",
            found=f"{'rank 1 at each site' if auto else 'the table as written'} costs {least:,} {unit}",
            instead=f"at least {_least(budget, least, allowed)}, or fewer sites",
        )
    if auto and budget.quantity == "memory":
        assert memory is not None  # spending said so
        _share_out_measured(ranks, auto, allowed, memory)
    elif auto:
        _share_out(ranks, auto, allowed - least, rank_costs(anatomy, ranks, auto, budget.quantity))
    return ranks


def _lengths(table: Sequence[tuple[Site, int | None]], budget: Budget) -> int:
    """What DoRA's lengths take of a budget of parameters, whatever the ranks."""
    if budget.quantity != "params":
        raise SettingsError(
            given=f"--dora and a budget of {budget.text}",
            found="a price of ranks, and DoRA's lengths cost a pass over every adapted matrix at any rank",
            instead="--budget params=1M, or ranks in the placement",
        )
    return sum(site.dora_parameters for site, _ in table)


def _least(budget: Budget, least: int, allowed: int) -> str:
    """The smallest budget that would do, in the words of the one that was given."""
    if budget.quantity == "time" and budget.like is None and budget.amount is not None:
        # Rounded up, for a budget that is then still too small helps nobody.
        return f"time={math.ceil(1000 * least / allowed * budget.amount + 1e-9) / 1000:g}"
    if budget.quantity == "time":
        return f"{least / allowed:.4g} times that"
    return f"{budget.quantity}={least}"


def rank_costs(
    anatomy: Anatomy,
    ranks: Mapping[str, int],
    auto: Sequence[Site],
    quantity: Quantity,
    memory: Memory | None = None,
) -> dict[str, int]:
    """What one more rank costs at each of these sites.

    Args:
        anatomy: of the model.
        ranks: path → rank; every site of ``auto`` has one.
        auto: the sites.
        quantity: in which unit.
        memory: tells peak bytes, where they are asked for.
    """
    if quantity == "params":
        return {site.path: site.lora_parameters(1) for site in auto}
    # Of time and memory: sites alike in tower, role, shape and layer cost alike; above a tower's lowest layer, all do.
    lowest: dict[str, int] = {}
    for site in anatomy.sites:
        if site.path in ranks and site.layer is not None:
            lowest[site.scope] = min(site.layer, lowest.get(site.scope, site.layer))
    alike: dict[tuple, list[Site]] = {}
    for site in auto:
        bottom = site.layer in (None, lowest.get(site.scope))
        alike.setdefault((site.scope, site.role, site.shape, site.kind, site.experts, bottom), []).append(
            site
        )
    base = cost_of_ranks(anatomy, ranks, quantity, memory)
    steps: dict[str, int] = {}
    for sites in alike.values():
        more = {**ranks, sites[0].path: ranks[sites[0].path] + 1}
        step = cost_of_ranks(anatomy, more, quantity, memory) - base
        steps |= dict.fromkeys((site.path for site in sites), step)
    return steps


def _share_out(ranks: dict[str, int], auto: Sequence[Site], left: int, steps: Mapping[str, int]) -> None:
    """Spend ``left`` on ranks, in place; every auto site enters with rank 1."""

    def price(rank: int) -> int:
        return sum((min(rank, site.max_rank) - 1) * steps[site.path] for site in auto)

    low, high = 1, max(site.max_rank for site in auto)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if price(middle) <= left else (low, middle - 1)
    left -= price(low)
    for site in auto:
        ranks[site.path] = min(low, site.max_rank)
    _give(ranks, spread(auto), left, steps)


def _give(ranks: dict[str, int], order: Sequence[Site], left: float, steps: Mapping[str, float]) -> None:
    """Give spare ranks out one at a time, in place, as long as one fits."""
    while True:
        before = left
        for site in order:
            if steps[site.path] <= left and ranks[site.path] < site.max_rank:
                ranks[site.path] += 1
                left -= steps[site.path]
        if left == before:
            return


def _share_out_measured(ranks: dict[str, int], auto: Sequence[Site], allowed: int, price: Memory) -> None:
    """Spend what is allowed on ranks, in place, where a price can only be asked for; every auto site has rank 1."""

    def alike(rank: int) -> dict[str, int]:
        return ranks | {site.path: min(rank, site.max_rank) for site in auto}

    most = max(site.max_rank for site in auto)
    low, spent = 1, price(alike(1))
    high, over = most + 1, math.inf  # prices of `high` and above are too much, or there is no such rank
    step = 1.0 if most == 1 else price(alike(2)) - spent
    while high - low > 1:
        # The price is close to a straight line: a few guesses meet.
        guess = low + max(1, min(high - low - 1, int((allowed - spent) // max(step, 1))))
        measured = price(alike(guess))
        if measured <= allowed:
            step = max(1.0, (measured - spent) / (guess - low))
            low, spent = guess, measured
        else:
            step = max(1.0, (measured - spent) / (guess - low))
            high, over = guess, measured
    uniform = alike(low)
    ranks.update(uniform)
    if over == math.inf:
        return
    unit = sum(site.lora_parameters(1) for site in auto if site.max_rank > low)
    steps = {site.path: (over - spent) * site.lora_parameters(1) / unit for site in auto}
    left = float(allowed - spent)
    while left >= min(steps.values()):
        table = dict(uniform)
        _give(table, spread(auto), left, steps)
        measured = price(table)
        if measured <= allowed:
            ranks.update(table)
            return
        left -= max(measured - allowed, min(steps.values()))


def spread(sites: Sequence[Site]) -> list[Site]:
    """Sites in the order in which spare ranks are given out: layers spread over the depth, then as they come.

    Layers come in van der Corput's order, so that any first few of them lie far apart.
    """
    layers = sorted({site.layer for site in sites if site.layer is not None})
    position = {layer: _reversed_bits(i) for i, layer in enumerate(layers)}
    return sorted(sites, key=lambda site: position[site.layer] if site.layer is not None else 1.0)


def _reversed_bits(number: int) -> float:
    value, half = 0.0, 0.5
    while number:
        value += half * (number & 1)
        number, half = number >> 1, half / 2
    return value


def check_auto(placement: Placement, table: Sequence[tuple[Site, int | None]]) -> None:
    """Without a budget no rank may be ``auto``.

    Raises:
        PlacementError: one is.
    """
    auto = [site for site, rank in table if rank is None]
    if auto:
        rank = min(DEFAULT_RANK, *(site.max_rank for site in auto))
        terms = [replace(term, rank=rank) if term.rank == "auto" else term for term in placement.terms]
        text = Placement(source="", terms=tuple(terms)).text
        raise PlacementError(
            given=placement.text,
            found="a rank of auto and no budget to solve it from",
            instead=f"`{text}`, or --budget params=1M",
            position=placement.text.find("auto"),
            suggestions=(text,),
        )
