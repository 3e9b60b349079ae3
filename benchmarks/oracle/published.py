"""Published rules that decide ranks before training, each at equal parameters.

A rule is a pure function: what it looks at, by path → ranks, by path. Papers let the number of parameters vary; here
every rule spends the same budget, so its ranks are scaled to it (`proportional`). What departs further is in each
docstring. `benchmarks.oracle.statistics` measures what the rules look at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from loratlas.anatomy.sites import Anatomy, Site
from loratlas.placement.budget import allowance, parse_budget

Ranks = dict[str, int]
Values = Mapping[str, float]

GORA_LEAST, GORA_MOST = 0.5, 4.0
"""Bounds of GoRA's ranks over the reference rank (4 and 32 at 8 in the paper)."""

EVA_CAP = 2.0
"""EVA's ρ: no rank above so many times the reference rank (the paper's own setting)."""

ALETHEIA_SHARE = 0.5
"""Share of the layers that Aletheia adapts."""

PLOP_TYPES = 3
"""Module types that PLoP adapts."""

KAPPA_SHARE = 1 / 3
"""Share of the matrices that KappaTune adapts."""

DROP_SHARE = 0.9
"""Share of the summed importance whose layers LoRA-drop keeps."""


def gora(importance: Values, sites: Sequence[Site], budget: float) -> Ranks:
    """GoRA (arXiv:2502.12171): rank_i = round(B · a_i / √(m_i + n_i)), a_i the share of a matrix in the summed
    importance mean|W ⊙ G|, between half and four times the reference rank.

    Departures: B is chosen so that parameters, not Σ √(m + n) · r, equal the budget; its initialisation of B by the
    gradient is another arm's (``gora_start``).

    Args:
        importance: mean of |W ⊙ G| over a matrix.
        sites: that may carry an adapter. budget: parameters.
    """
    weights = {site.path: importance[site.path] / math.sqrt(sum(site.shape)) for site in sites}
    reference = budget / sum(_price(site) for site in sites)
    least, most = math.floor(GORA_LEAST * reference), max(1, round(GORA_MOST * reference))
    return proportional(weights, sites, budget, least=least, most=most)


def fim_lora(fisher: Values, sites: Sequence[Site], budget: float) -> Ranks:
    """FIM-LoRA (arXiv:2605.16800): ranks in proportion to the mean squared gradient of B over calibration batches.

    Departures: the least rank is 0 where the reference rank is 1, as the paper's 1 would leave nothing to decide.

    Args:
        fisher: mean over entries of B and over batches of (∂L/∂B)², with B = 0 and A as drawn.
        sites, budget: as of `gora`.
    """
    reference = budget / sum(_price(site) for site in sites)
    return proportional(
        fisher, sites, budget, least=1 if reference > 1 else 0, most=max(1, round(4 * reference))
    )


def dom_lora(page: Values, sites: Sequence[Site], budget: float) -> Ranks:
    """DomLoRA (arXiv:2605.06183): one adapter, where the projected gradient energy ‖∂L/∂B‖²_F is largest.

    Departure: at equal parameters one matrix seldom holds them; the next in order takes what is left.

    Args:
        page: ‖∂L/∂B‖²_F at B = 0.
        sites, budget: as of `gora`.
    """
    ranks, left = {}, budget
    for site in sorted(sites, key=lambda site: (-page[site.path], site.path)):
        rank = min(int(left // _price(site)), site.max_rank)
        if rank:
            ranks[site.path] = rank
            left -= rank * _price(site)
    return ranks


def aletheia(norms: Values, sites: Sequence[Site], budget: float) -> Ranks:
    """Aletheia (arXiv:2604.15351): the half of the layers with the largest gradient norms, all their matrices alike.

    Departure: the paper's higher rank for attention than for feed-forward is left out, which the budget would undo.

    Args:
        norms: ‖G‖_F of every matrix; a layer's is the root of its matrices' summed squares.
        sites, budget: as of `gora`.
    """
    layers: dict[int, float] = {}
    for site in sites:
        if site.layer is not None:
            layers[site.layer] = layers.get(site.layer, 0.0) + norms[site.path] ** 2
    kept = sorted(layers, key=lambda layer: (-layers[layer], layer))[
        : max(1, round(ALETHEIA_SHARE * len(layers)))
    ]
    among = [site for site in sites if site.layer in kept]
    return proportional({site.path: 1.0 for site in among}, among, budget)


def sr_lora(stable_ranks: Values, sites: Sequence[Site], budget: float) -> Ranks:
    """SR-LoRA (arXiv:2507.00327): ranks in proportion to the stable rank ‖W‖²_F / ‖W‖²_2 of the frozen matrix.

    Args:
        stable_ranks: of every matrix.
        sites, budget: as of `gora`.
    """
    return proportional(stable_ranks, sites, budget)


def lora_drop(outputs: Values, sites: Sequence[Site], budget: float) -> Ranks:
    """LoRA-drop (arXiv:2402.07721): matrices by how large the output ΔW x of a briefly trained adapter is, kept until
    they hold 90 % of the sum.

    Departures: those that are dropped share no adapter; those that stay divide the budget alike.

    Args:
        outputs: mean of ‖ΔW x‖² over tokens, after a short training.
        sites, budget: as of `gora`.
    """
    total, kept, held = sum(outputs[site.path] for site in sites), [], 0.0
    for site in sorted(sites, key=lambda site: (-outputs[site.path], site.path)):
        if held >= DROP_SHARE * total and kept:
            break
        kept.append(site)
        held += outputs[site.path]
    return proportional({site.path: 1.0 for site in kept}, kept, budget)


def eva(variances: Mapping[str, Sequence[float]], sites: Sequence[Site], budget: float) -> Ranks:
    """EVA (arXiv:2410.07170) with its cap: components of all matrices in the order of the variance they explain, no
    matrix with more than ρ = 2 times the reference rank.

    Departure: taken while parameters last, not up to a number of ranks. Its initialisation (A along these components)
    is `benchmarks.oracle.statistics.eva_start`.

    Args:
        variances: explained variance of component 1, 2, …, by path.
        sites, budget: as of `gora`.
    """
    reference = budget / sum(_price(site) for site in sites)
    most = max(1, round(EVA_CAP * reference))
    price = {site.path: _price(site) for site in sites}
    listed = [(value, path) for path in price for value in variances[path][:most]]
    ranks: Ranks = dict.fromkeys(price, 0)
    for _, path in sorted(listed, key=lambda each: (-each[0], each[1])):
        if price[path] <= budget:
            ranks[path] += 1
            budget -= price[path]
    return {path: rank for path, rank in ranks.items() if rank}


def plop(norms: Values, sites: Sequence[Site], budget: float) -> Ranks:
    """PLoP (arXiv:2506.20629): the three module types whose normalised feature norm, averaged over layers, is lowest,
    in all layers alike.

    Args:
        norms: ‖W x‖ over that of noise of the same size, of every matrix.
        sites, budget: as of `gora`.
    """
    by_role: dict[str, list[float]] = {}
    for site in sites:
        by_role.setdefault(site.role, []).append(norms[site.path])
    lowest = sorted(by_role, key=lambda role: (sum(by_role[role]) / len(by_role[role]), role))[:PLOP_TYPES]
    among = [site for site in sites if site.role in lowest]
    return proportional({site.path: 1.0 for site in among}, among, budget)


def kappatune(conditions: Values, sites: Sequence[Site], budget: float) -> Ranks:
    """KappaTune (arXiv:2506.16289): the third of the matrices with the lowest condition numbers, alike.

    Args:
        conditions: of every matrix.
        sites, budget: as of `gora`.
    """
    ordered = sorted(sites, key=lambda site: (conditions[site.path], site.path))
    among = ordered[: max(1, round(len(ordered) * KAPPA_SHARE))]
    return proportional({site.path: 1.0 for site in among}, among, budget)


RULES: Mapping[str, Callable[..., Ranks]] = {
    "gora": gora,
    "gora_start": gora,
    "fim_lora": fim_lora,
    "dom_lora": dom_lora,
    "aletheia": aletheia,
    "sr_lora": sr_lora,
    "lora_drop": lora_drop,
    "eva": eva,
    "plop": plop,
    "kappatune": kappatune,
}


def proportional(
    weights: Values, sites: Sequence[Site], budget: float, *, least: int = 0, most: int | None = None
) -> Ranks:
    """Ranks in proportion to weights, rounded, within bounds, that cost as much of a budget as fits.

    rank_i = clip(round(c · w_i), least, most) with the largest c that the budget holds; what is left goes rank by
    rank to the sites whose c · w_i was cut off most.

    Args:
        weights: ≥ 0, by path. sites: that may carry an adapter. budget: parameters.
        least, most: of every rank; a matrix's own largest rank is never exceeded.
    """
    tops = {site.path: min(site.max_rank, site.max_rank if most is None else most) for site in sites}

    def ranks(scale: float) -> Ranks:
        return {
            path: min(max(math.floor(scale * weights[path] + 0.5), least), top) for path, top in tops.items()
        }

    def cost(found: Ranks) -> float:
        return sum(_price(site) * found[site.path] for site in sites)

    positive = [value for value in weights.values() if value > 0]
    low, high = 0.0, max(tops.values()) / min(positive) if positive else 0.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(ranks(middle)) <= budget else (low, middle)
    found = ranks(low)
    left = budget - cost(found)
    for site in sorted(sites, key=lambda site: (found[site.path] - low * weights[site.path], site.path)):
        if _price(site) <= left and found[site.path] < tops[site.path] and weights[site.path] > 0:
            found[site.path] += 1
            left -= _price(site)
    return {path: rank for path, rank in found.items() if rank}


def parameters(anatomy: Anatomy, budget: str) -> float:
    """A budget as text in parameters."""
    return float(allowance(parse_budget(budget), anatomy))


def _price(site: Site) -> int:
    return site.lora_parameters(1)
