"""What a run's steps say about its sites, and how far it can be relied on.

Every statistic is read three times: from all steps since the last decision, and from two halves of them. Two halves
that order the sites alike (Kendall's τ) are evidence; two that do not are noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from loratlas.anatomy.sites import Site

Values = Mapping[str, float]
"""Path → number."""

HeadEntropy: TypeAlias = dict[str, list[float]]
"""``"base"`` and ``"adapted"`` → mean entropy of every head's pattern over queries, nats, without and with adapters."""

CEILING = 64
"""Most ranks that a policy gives to one site, where it does not begin with more than half of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One statistic.

    Args:
        whole: from all steps. first, second: from two halves of them.
    """

    whole: Values
    first: Values
    second: Values


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known when a decision is due.

    Args:
        step: steps done.
        sites: that may carry adapters, in the model's order.
        ranks: path → rank now, 0 included.
        measured: statistic's name → its numbers.
        directions: statistic's name → path → one number for each direction of the site's adapter.
        spectra: path → singular values of the site's ΔW, falling.
        seed: of whatever is drawn.
        ceiling: most ranks of a site, as far as its matrix allows.
        head_entropy: attention's module → entropy of its heads, where a policy watches attention; no policy follows it.
    """

    step: int
    sites: tuple[Site, ...]
    ranks: Mapping[str, int]
    measured: Mapping[str, Measured] = field(default_factory=dict)
    directions: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    spectra: Mapping[str, Sequence[float]] = field(default_factory=dict)
    seed: int = 0
    ceiling: int = CEILING
    head_entropy: Mapping[str, HeadEntropy] = field(default_factory=dict)

    @property
    def prices(self) -> dict[str, int]:
        """Path → parameters of one rank."""
        return {site.path: site.lora_parameters(1) for site in self.sites}

    @property
    def limits(self) -> dict[str, int]:
        """Path → most ranks."""
        return {site.path: min(site.max_rank, self.ceiling) for site in self.sites}

    @property
    def used(self) -> int:
        """Parameters now."""
        prices = self.prices
        return sum(prices[path] * rank for path, rank in self.ranks.items())


def ceiling_of(sites: Sequence[Site], parameters: int) -> int:
    """Most ranks of a site in a run of so many parameters: `CEILING`, or twice the rank that they give all sites alike.

    With all sites at the ceiling none could gain what another gives.

    >>> site = Site(path="q.weight", module="q", layer=0, scope="decoder", role="attn.q", shape=(512, 512),
    ...             kind="linear")
    >>> [ceiling_of([site], site.lora_parameters(rank)) for rank in (8, 32, 100, 512)]
    [64, 64, 200, 512]
    """
    most = max(site.max_rank for site in sites)
    alike = 0
    while alike < most and parameters_at(sites, alike + 1) <= parameters:
        alike += 1
    return max(CEILING, min(2 * alike, most))


def parameters_at(sites: Sequence[Site], rank: int) -> int:
    """Parameters of sites that all have this rank, as far as their matrices allow."""
    return sum(site.lora_parameters(min(rank, site.max_rank)) for site in sites)


def common(one: Values, two: Values) -> tuple[dict[str, float], dict[str, float]]:
    """Both, at the paths that both have."""
    paths = [path for path in one if path in two]
    return {path: one[path] for path in paths}, {path: two[path] for path in paths}


def kappa(reliability: float) -> float:
    """κ = τ/(1 − τ), the weight of a statistic whose halves agree by τ; 99 at most.

    >>> kappa(0.0), kappa(0.5), round(kappa(0.75), 9)
    (0.0, 1.0, 3.0)
    """
    return min(reliability, 0.99) / (1 - min(reliability, 0.99))


def standardised(values: Values) -> dict[str, float]:
    """z: mean 0, standard deviation 1; zeros where all are alike.

    >>> standardised({"a": 1.0, "b": 3.0})
    {'a': -1.0, 'b': 1.0}
    """
    n = len(values)
    if not n:
        return {}
    mean = sum(values.values()) / n
    spread = math.sqrt(sum((value - mean) ** 2 for value in values.values()) / n)
    return {path: (value - mean) / spread if spread else 0.0 for path, value in values.items()}


def pooled(values: Values, sites: Sequence[Site], reliability: float) -> dict[str, float]:
    """Values drawn towards what their role and their depth say.

        x̂ = m + ρ (x − m),     m = mean of the role + mean of the layer − mean of all

    A site's own number counts by ρ, what it shares with others of its role and layer counts whole: means of many are
    less noisy than single numbers.

    Args:
        values: x, by path.
        sites: of the paths.
        reliability: ρ, 0 to 1.
    """
    by_path = {site.path: site for site in sites}
    mean = sum(values.values()) / len(values)

    def means(key: Callable[[Site], object]) -> dict[object, float]:
        groups: dict[object, list[float]] = {}
        for path, value in values.items():
            groups.setdefault(key(by_path[path]), []).append(value)
        return {name: sum(group) / len(group) for name, group in groups.items()}

    role, layer = means(lambda site: site.role), means(lambda site: site.layer)
    pooled_means = {}
    for path, value in values.items():
        site = by_path[path]
        expected = role[site.role] + layer[site.layer] - mean
        pooled_means[path] = expected + reliability * (value - expected)
    return pooled_means
