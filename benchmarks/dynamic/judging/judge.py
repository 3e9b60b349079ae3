"""From losses of runs to what is said about an arm: nats, the share of what `all` loses, and steps saved.

With L(arm) the token mean over held-out rows and fresh seeds, at one length:

    difference   D = L(arm) − L(all), paired by seed and row, interval by `loratlas.study.results.estimator`
    share lost   (L(arm) − L(best)) / (L(all) − L(best))
    steps saved  T' − T with L(all after T' steps) = L(arm after T steps)
    equal cost   L(arm) − L(all after as many more steps as the arm's other work costs)

**Best** is cross-fitted: for every seed it is the arm that was best on the other seeds, so that no arm profits from the
luck it was chosen for. The share is undefined where `all` is best; sums over cases take such a case in all the same.
**Noise floor**: what the cross-fitted best itself loses against the lowest mean of any arm, in the same unit.
Intervals of shares: bootstrap over seeds and rows within a case, and over cases where they are pooled; of steps: the
ends of D's interval, read off the same curve. Rows that answer one prompt are drawn together and count once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t as student

from benchmarks.dynamic.arms import REFERENCE
from loratlas.study.results.estimator import estimate

DRAWS = 2000
"""Bootstrap samples."""

LEVEL = 0.95

Losses = Mapping[str, np.ndarray]
"""Arm → summed losses [S, N] of S fresh seeds and N rows, seeds in one order for all arms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value with its 95 % interval; NaN where it cannot be known."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """Plain data, None for NaN."""
        return {
            name: None if math.isnan(number) else round(number, 5)
            for name, number in (("value", self.value), ("low", self.low), ("high", self.high))
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseLosses:
    """What fresh seeds said about one case at its judged length.

    Args:
        losses: see `Losses`; the reference among them.
        tokens: counted tokens of each row [N].
        steps: the judged length.
        curve: T → summed losses of the reference [S, N], at lengths around the judged one, that one included.
        clusters: numbers [N], equal for rows that belong together; None where none do.
        best: summed losses [S, N] of the best arm, see `best_by_others`; made from ``losses`` where it is not given.
        units: rows of each cluster; made from ``clusters``.
    """

    losses: Losses
    tokens: np.ndarray
    steps: int
    curve: Mapping[int, np.ndarray]
    clusters: np.ndarray | None = None
    best: np.ndarray | None = None
    units: Sequence[np.ndarray] | None = None

    def __post_init__(self) -> None:
        if self.clusters is not None and self.units is None:  # found once, for every draw
            members = [np.flatnonzero(self.clusters == unit) for unit in np.unique(self.clusters)]
            object.__setattr__(self, "units", members)
        if self.best is None:  # chosen once: a resampled seed must not choose for its own copy
            object.__setattr__(self, "best", best_by_others(self.losses, self.tokens))

    @property
    def seeds(self) -> int:
        """S."""
        return next(iter(self.losses.values())).shape[0]

    def resampled(self, random: np.random.Generator) -> CaseLosses:
        """Seeds and rows drawn with replacement, the same for all arms; of rows that belong together, all or none."""
        seeds = random.integers(self.seeds, size=self.seeds)
        count = len(self.tokens if self.units is None else self.units)
        rows = random.integers(count, size=count)
        if self.units is not None:
            rows = np.concatenate([self.units[i] for i in rows])

        def draw(table: np.ndarray) -> np.ndarray:
            return table[np.ix_(seeds, rows)]

        return CaseLosses(
            losses={arm: draw(table) for arm, table in self.losses.items()},
            tokens=self.tokens[rows],
            steps=self.steps,
            curve={length: draw(table) for length, table in self.curve.items()},
            best=draw(self.best_losses),
        )

    @property
    def best_losses(self) -> np.ndarray:
        """Summed losses [S, N] of the cross-fitted best."""
        assert self.best is not None
        return self.best

    @property
    def best_mean(self) -> float:
        """Its token mean."""
        return float(self.best_losses.sum() / self.tokens.sum() / self.seeds)

    def by_seed(self, arm: str) -> np.ndarray:
        """Token means [S]."""
        return self.losses[arm].sum(axis=1) / self.tokens.sum()


def difference(case: CaseLosses, arm: str, versus: str = REFERENCE) -> Interval:
    """L(arm) − L(versus) with its interval."""
    return _estimated(case.losses[arm] - case.losses[versus], case)


def _estimated(table: np.ndarray, case: CaseLosses) -> Interval:
    """A difference of summed losses [S, N] as one of token means."""
    estimated = estimate(table, case.tokens, clusters=case.clusters)
    low, high = estimated.interval(LEVEL)
    return Interval(value=estimated.value, low=low, high=high)


def verdict(found: Interval) -> str:
    """Better, worse or undetermined, by the 95 % interval of a difference.

    >>> verdict(Interval(value=-0.02, low=-0.03, high=-0.01))
    'better'
    """
    return "better" if found.high < 0 else "worse" if found.low > 0 else "undetermined"


def tally(found: Sequence[Interval]) -> dict[str, int]:
    """In how many cases a difference is ``better`` and ``worse``, of how many ``cases``.

    >>> tally([Interval(value=-0.02, low=-0.03, high=-0.01), Interval(value=0.0, low=-0.01, high=0.01)])
    {'better': 1, 'worse': 0, 'cases': 2}
    """
    verdicts = [verdict(one) for one in found]
    return {"better": verdicts.count("better"), "worse": verdicts.count("worse"), "cases": len(found)}


def mean_difference(cases: Sequence[CaseLosses], arm: str, versus: str = REFERENCE) -> Interval:
    """Mean over cases of L(arm) − L(versus), with Student's interval over cases; NaN bounds for a single case."""
    values = np.array([difference(case, arm, versus).value for case in cases])
    spread = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    half = float(student.ppf(0.5 + LEVEL / 2, max(len(values) - 1, 1)) * spread)
    return Interval(value=float(values.mean()), low=values.mean() - half, high=values.mean() + half)


def best_by_others(losses: Losses, tokens: np.ndarray) -> np.ndarray:
    """Summed losses [S, N] of the best arm, for every seed of the one that was best on the other seeds."""
    arms = list(losses)
    table = np.stack([losses[arm].sum(axis=1) / tokens.sum() for arm in arms])
    seeds = range(table.shape[1])
    others = [
        np.delete(table, seed, axis=1).mean(axis=1) if len(seeds) > 1 else table[:, 0] for seed in seeds
    ]
    chosen = np.stack(others, axis=1).argmin(axis=0)
    return np.stack([losses[arms[index]][seed] for seed, index in enumerate(chosen)])


def lost_and_scale(case: CaseLosses, arm: str) -> tuple[float, float]:
    """(L(arm) − L(best), L(all) − L(best)), nats per token."""
    return (
        float(case.by_seed(arm).mean()) - case.best_mean,
        float(case.by_seed(REFERENCE).mean()) - case.best_mean,
    )


def share_lost(cases: Sequence[CaseLosses], arms: Sequence[str], *, seed: int = 0) -> Interval:
    """Σ (L(arm) − L(best)) / Σ (L(all) − L(best)) over cases.

    Args:
        cases: one or more. arms: the arm that is judged in each.
        seed: of the bootstrap.
    """

    def of(chosen: Sequence[CaseLosses], names: Sequence[str]) -> float:
        pairs = [lost_and_scale(case, arm) for case, arm in zip(chosen, names, strict=True)]
        lost, scale = (sum(each) for each in zip(*pairs, strict=True))
        return lost / scale if scale > 0 else math.nan

    return _bootstrapped(of, cases, arms, seed)


def steps_saved(case: CaseLosses, arm: str) -> Interval:
    """Steps that the reference needs more than the arm for the arm's loss; below 0 where it needs fewer.

    Loss against the logarithm of steps is interpolated linearly, after it was made to fall: a longer run that ends
    higher counts as high as the shorter one. Ends beyond the curve are its last length, and half of its first.
    """
    means = {length: table.sum() / case.tokens.sum() / case.seeds for length, table in case.curve.items()}
    return in_steps(difference(case, arm), case.steps, means)


def in_steps(apart: Interval, steps: int, curve: Mapping[int, float]) -> Interval:
    """A difference from the reference as steps that are saved.

    Args:
        apart: in nats, at ``steps``. curve: T → loss of the reference, that at ``steps`` among them.
    """
    lengths = sorted(curve)
    # A higher loss is fewer steps: the upper end of the difference is the lower end of what is saved.
    value, low, high = (
        steps_for(curve[steps] + end, lengths, [curve[length] for length in lengths]) - steps
        for end in (apart.value, apart.high, apart.low)
    )
    return Interval(value=value, low=low, high=high)


def steps_for(loss: float, lengths: Sequence[int], losses: Sequence[float]) -> float:
    """Steps after which a curve reaches a loss.

    Its last length where it never does. Above its first loss the first stretch is drawn on, to half that length.

    >>> round(steps_for(2.0, [50, 100, 200], [2.5, 2.25, 1.75])), round(steps_for(2.6, [50, 100], [2.5, 2.25]))
    (141, 38)
    """
    falling = np.minimum.accumulate(np.asarray(losses, dtype=float))
    logs = np.log(np.asarray(lengths, dtype=float))
    if loss > falling[0] and len(logs) > 1:
        slope = (falling[0] - falling[1]) / (logs[1] - logs[0])
        back = (loss - falling[0]) / slope if slope > 0 else math.inf
        return float(lengths[0] * max(0.5, math.exp(-back)))
    # np.interp wants rising abscissae: losses from low to high, steps from many to few.
    return float(np.exp(np.interp(loss, falling[::-1], logs[::-1])))


def at_equal_cost(case: CaseLosses, arm: str, extra: float) -> Interval:
    """L(arm) − L(all trained ``extra`` steps more): what remains where something took the work of so many steps.

    Between the lengths that the reference was trained for its losses are straight in the logarithm of steps, row by
    row.
    """
    lengths = sorted(case.curve)
    after = next((length for length in lengths if length > case.steps), case.steps)
    far = math.log(1 + extra / case.steps) / math.log(after / case.steps) if after > case.steps else 0.0
    reference = (1 - far) * case.curve[case.steps] + far * case.curve[after]
    return _estimated(case.losses[arm] - reference, case)


def noise_floor(cases: Sequence[CaseLosses]) -> float:
    """Σ (L(cross-fitted best) − lowest mean of any arm) / Σ (L(all) − L(cross-fitted best))."""
    floor = scale = 0.0
    for case in cases:
        floor += case.best_mean - min(float(case.by_seed(arm).mean()) for arm in case.losses)
        scale += float(case.by_seed(REFERENCE).mean()) - case.best_mean
    return floor / scale if scale > 0 else math.nan


def chosen_elsewhere(cases: Sequence[CaseLosses], rules: Sequence[str]) -> list[str]:
    """For every case the rule that lost least on the other cases."""
    lost = np.array([[lost_and_scale(case, rule)[0] for rule in rules] for case in cases])
    return [rules[int(np.delete(lost, index, axis=0).sum(axis=0).argmin())] for index in range(len(cases))]


def _bootstrapped(
    of: Callable[[Sequence[CaseLosses], Sequence[str]], float],
    cases: Sequence[CaseLosses],
    arms: Sequence[str],
    seed: int,
) -> Interval:
    random = np.random.Generator(np.random.PCG64(seed))
    drawn, whole = [], cases
    cases = [_of_two(case, arm) for case, arm in zip(cases, arms, strict=True)]
    for _ in range(DRAWS):
        picked = random.integers(len(cases), size=len(cases)) if len(cases) > 1 else np.zeros(1, dtype=int)
        drawn.append(of([cases[i].resampled(random) for i in picked], [arms[i] for i in picked]))
    known = np.array([value for value in drawn if not math.isnan(value)])
    value = of(whole, arms)
    if math.isnan(value) or len(known) < 0.9 * DRAWS:
        return Interval(value=math.nan, low=math.nan, high=math.nan)  # no scale to speak of
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value=value, low=float(low), high=float(high))


def _of_two(case: CaseLosses, arm: str) -> CaseLosses:
    """The case with what a share needs alone: drawing thirty other arms takes thirty times as long."""
    return replace(
        case, losses={name: case.losses[name] for name in dict.fromkeys((REFERENCE, arm))}, curve={}
    )
