"""Whole protocols, rate choice included, on many simulated studies at once.

The second edition is the project's own: `choose`, `run_variance` and `crossed` are called as a study calls them, and
the walk over rates follows `loratlas.study.execution.schedule` (a test holds the two against each other).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from benchmarks.calibration.worlds import ARMS, World
from loratlas.study.execution.rate_choice import choose, run_variance
from loratlas.study.results.estimator import by_cluster, crossed, p_value, skew_allowance
from loratlas.study.results.power import detectable

ALPHA, SEEDS = 0.05, 5
STEP = np.log(1.6) / 2
GRID = 7
"""Rates of the first round."""

TUNING_SEEDS, MOVES = 3, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What tuning leaves: arrays over [studies, arms].

    Args:
        rate: logarithm of the chosen rate. runs: how many were trained. share: rate share.
        near: losses [studies, arms, 3, seeds] around the optimum, None in the first edition.
        undetermined: optimum at an edge after the last move, or beside a rate that diverged however near.
    """

    rate: np.ndarray
    runs: np.ndarray
    share: np.ndarray
    near: np.ndarray | None
    undetermined: np.ndarray


def tune_first(world: World, random: np.random.Generator, optima: np.ndarray) -> Tuned:
    """The first edition: five rates 2.5 apart, two seeds each, the lowest mean."""
    studies = len(optima)
    x = np.arange(-2, 3) * np.log(2.5)
    y = world.tuning(random, x - optima[..., None], world.seeds(random, studies, 2)).mean(axis=-1)
    nothing = np.zeros((studies, ARMS))
    return Tuned(
        rate=x[y.argmin(axis=-1)],
        runs=nothing + 10,
        share=nothing,
        near=None,
        undetermined=nothing.astype(bool),
    )


def tune_second(world: World, random: np.random.Generator, optima: np.ndarray) -> Tuned:
    """The second edition: one seed on a grid 1.6 apart, then 1.26 apart around each arm's best, then three seeds.

    Where a neighbour diverged, the distance is halved once.
    """
    studies = len(optima)
    fine = 1 if np.isinf(world.cliff) else 2  # points of the lattice in half a step of the grid
    ends = (GRID - 1 + 4) * fine  # rates beyond the grid are its extensions
    lattice = np.arange(-ends, ends + 1)
    y = world.tuning(
        random, lattice * STEP / fine - optima[..., None], world.seeds(random, studies, TUNING_SEEDS)
    )  # [studies, arms, rates, seeds]: all that could be run
    ran = np.zeros(y.shape, dtype=bool)
    ran[:, :, (np.abs(lattice) <= (GRID - 1) * fine) & (lattice % (2 * fine) == 0), 0] = True
    best = np.where(ran[..., 0], y[..., 0], np.inf).argmin(axis=-1)
    k, a = np.ogrid[:studies, :ARMS]
    best = np.clip(best, fine, len(lattice) - 1 - fine)
    half = np.full((studies, ARMS), fine)

    def around(count: int) -> np.ndarray:
        for side in (-1, 0, 1):
            ran[k, a, best + side * half, :count] = True
        return np.stack([y[k, a, best + side * half, :count] for side in (-1, 0, 1)], axis=-2)

    moved = np.zeros((studies, ARMS), dtype=int)
    for count in (1, TUNING_SEEDS):
        for left in range(MOVES, -1, -1):
            near = around(count)
            moved, edge = _lowest(near), ~np.isfinite(near).all(axis=(-2, -1))
            if left:
                best = np.clip(best + moved * half, fine, len(lattice) - 1 - fine)
                half = np.where(edge & (moved == 0) & (half > 1), half // 2, half)
    near = around(TUNING_SEEDS)
    chosen = choose(near, STEP * half / fine)
    beyond = (moved != 0) & (near[k, a, moved + 1] < near[:, :, 1]).all(axis=-1)
    return Tuned(
        rate=lattice[best] * STEP / fine + chosen.shift,
        runs=ran.sum(axis=(-2, -1)),
        share=chosen.share,
        near=np.where(np.isfinite(near), near, np.nan),
        undetermined=beyond | ~np.isfinite(near).all(axis=(-2, -1)),
    )


def _lowest(near: np.ndarray) -> np.ndarray:
    """[studies, arms] which of three rates is best: −1, 0 or 1, by the median over seeds without what a seed gives to
    all its runs. A rate at which one diverged is not; 0 where all three are such."""
    finite = np.isfinite(near).all(axis=-1, keepdims=True)
    known = np.where(finite, near, 0.0)
    centred = known - known.sum(axis=-2, keepdims=True) / np.maximum(finite.sum(axis=-2, keepdims=True), 1)
    middles = np.where(finite[..., 0], np.median(centred, axis=-1), np.inf)
    return np.where(finite.any(axis=(-2, -1)), middles.argmin(axis=-1) - 1, 0)


@lru_cache(maxsize=1)
def _table() -> tuple[np.ndarray, np.ndarray]:
    df = np.geomspace(2, 3000, 60)
    return np.log(df), np.array([detectable(1.0, d, alpha=ALPHA / (ARMS - 1)) for d in df])


def run(world: World, edition: int, studies: int, seed: int, chunk: int = 200) -> dict[str, float]:
    """Simulate; returns familywise share of studies with a false better or worse, power, runs per arm."""
    random = np.random.default_rng([seed, edition])
    false = hits = asked = open_ends = 0
    runs, lost, sizes = 0.0, 0.0, []
    for start in range(0, studies, chunk):
        count = min(chunk, studies - start)
        optima = world.optima(random, count)
        tuned = (tune_first if edition == 1 else tune_second)(world, random, optima)
        runs += float(tuned.runs.sum()) + SEEDS * ARMS * count
        lost += float(world.curve.excess(tuned.rate - optima).sum())
        x, n, prompts = world.evaluation(random, tuned.rate - optima, SEEDS)
        open_arms = tuned.undetermined | world.diverged(random, tuned.rate - optima, SEEDS).any(axis=-1)
        wrong = np.zeros(count, dtype=bool)
        for arm in range(ARMS - 1):
            p, size, p_with = _judge(x[:, arm], n, prompts, tuned, arm + 1, edition, random)
            decided = ~(open_arms[:, 0] | open_arms[:, arm + 1])
            wrong |= (p < ALPHA / (ARMS - 1)) & decided
            hits += int(((p_with < ALPHA / (ARMS - 1)) & decided).sum())
            asked += int(decided.sum())
            open_ends += int((~decided).sum())
            sizes.append(size)
        false += int(wrong.sum())
    return {
        "familywise": false / studies,
        "power": hits / max(asked, 1),
        "printed_difference": float(np.nanmedian(np.concatenate(sizes))),
        "runs_per_arm": runs / studies / ARMS,
        "lost_by_rate": lost / studies / ARMS,
        "undetermined_by_rate": open_ends / studies / (ARMS - 1),
    }


def _judge(
    x: np.ndarray,
    n: np.ndarray,
    prompts: np.ndarray | None,
    tuned: Tuned,
    arm: int,
    edition: int,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p without a difference, the printed difference, p with that difference put in."""
    sign = random.choice([-1.0, 1.0], len(x))
    terms: dict[str, np.ndarray | float] = {}
    if edition == 2 and tuned.near is not None:
        terms = {
            "run_variance": run_variance(tuned.near[:, arm], tuned.near[:, 0]),
            "run_df": 3 * (TUNING_SEEDS - 1.0),
            "rate_share": tuned.share[:, arm] + tuned.share[:, 0],
        }
        if prompts is not None:
            x, n = _units(x, n, prompts)
    one = crossed(x, n, **terms)  # pyright: ignore[reportArgumentType]
    error = np.sqrt(one.variance)
    bent = one.skewness if edition == 2 else 0.0
    df = one.df
    size = error * np.interp(np.log(df), *_table())
    if edition == 2:
        size = size + skew_allowance(error, df, one.skewness, level=1 - ALPHA / (ARMS - 1))
    put_in = crossed(x + (sign * size)[:, None, None] * n[:, None, :], n, **terms)  # pyright: ignore[reportArgumentType]
    return (
        p_value(one.value, error, df, bent),
        size,
        p_value(put_in.value, np.sqrt(put_in.variance), put_in.df, put_in.skewness if edition == 2 else 0.0),
    )


def _units(x: np.ndarray, n: np.ndarray, prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as units: [studies, seeds, most prompts], those that a study lacks with 0 tokens."""
    most = int(prompts.max()) + 1
    summed, tokens = np.zeros((*x.shape[:2], most)), np.zeros((len(n), most))
    for k in range(len(x)):
        there = np.unique(prompts[k])
        summed[k][:, there], tokens[k, there] = by_cluster(x[k], n[k], prompts[k])
    return summed, tokens
