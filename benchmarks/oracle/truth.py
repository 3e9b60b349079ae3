"""What training said about one case: losses of every choice, the winner, and what each choice loses against it.

The **winner** is the choice with the lowest loss on the screening seeds, at its own best rate. On the fresh seeds

    regret of a choice, lower bound = loss(choice) − loss(winner)
                        upper bound = loss(choice) − lowest fresh mean of any choice

The winner may not be the best, and the lowest fresh mean is low partly by luck: the truth is between. A case whose
noise (standard error of a choice's fresh mean, over seeds) exceeds `TIE` of its spread (standard deviation of the
choices' means) is a tie: it is told in nats and left out of relative regret.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.oracle.choices import Choice
from loratlas.anatomy.sites import Anatomy
from loratlas.placement.plan import Plan, place
from loratlas.scan.plan_from_scores import gains
from loratlas.scan.scores import Scan
from loratlas.scan.trial_runs import COST
from loratlas.study.execution.run_records import read_examples
from loratlas.study.results.estimator import estimate

TIE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What training said about one case.

    Args:
        name: of the case. steps: of a run.
        screened, fresh: choice → mean loss on the screening and on the fresh seeds, nats per token.
        losses: choice → seed → summed losses of the examples [N]; tokens: counted tokens of each [N].
        kinds: choice → what it is, see `Choice`.
        predicted: column → choice → what the column says it gains.
        base: loss of the bare base.
        cost: of what `--placement auto` measures, in training steps of 16 rows.
    """

    name: str
    steps: int
    screened: Mapping[str, float]
    fresh: Mapping[str, float]
    losses: Mapping[str, Mapping[int, np.ndarray]]
    tokens: np.ndarray
    kinds: Mapping[str, str]
    predicted: Mapping[str, Mapping[str, float]]
    base: float
    cost: float

    @property
    def winner(self) -> str:
        """The best of the screening seeds."""
        return min(self.screened, key=lambda name: (self.screened[name], name))

    @property
    def best(self) -> float:
        """The lowest fresh mean."""
        return min(self.fresh.values())

    @property
    def scale(self) -> float:
        """How much a random plan loses against the best, in nats."""
        random = [self.fresh[name] for name, kind in self.kinds.items() if kind == "random"]
        return float(np.mean(random)) - self.best

    @property
    def noise(self) -> float:
        """Noise over spread."""
        told = [
            np.array([x.sum() / self.tokens.sum() for x in seeds.values()]) for seeds in self.losses.values()
        ]
        # Seeds are paired: what they share moves all choices alike and decides nothing.
        table = np.stack(told)
        table = table - table.mean(axis=0, keepdims=True)
        error = math.sqrt(float(table.var(axis=1, ddof=1).mean()) / table.shape[1])
        spread = float(np.std(table.mean(axis=1), ddof=1))
        return error / spread if spread else math.inf

    @property
    def tie(self) -> bool:
        """Whether placement made no difference that could be told from noise."""
        return not self.noise <= TIE

    def means(self, choice: str) -> dict[str, float]:
        """Fresh seed → loss, nats per token."""
        return {str(seed): float(x.sum() / self.tokens.sum()) for seed, x in self.losses[choice].items()}

    def regret(self, choice: str) -> dict[str, Any]:
        """Bounds of a choice's regret, with the interval of the lower one."""
        low, error, interval = difference(self.losses, self.tokens, choice, self.winner)
        return {
            "lower": low,
            "lower_ci": list(interval),
            "error": error,
            "upper": self.fresh[choice] - self.best,
        }


def difference(
    losses: Mapping[str, Mapping[int, np.ndarray]], tokens: np.ndarray, one: str, two: str
) -> tuple[float, float, tuple[float, float]]:
    """(one − two, standard error, 95 % interval) in nats per token, paired by seed and example."""
    if one == two:
        return 0.0, 0.0, (0.0, 0.0)
    seeds = [seed for seed in losses[one] if seed in losses[two]]
    found = estimate(np.stack([losses[one][s] - losses[two][s] for s in seeds]), tokens)
    return found.value, found.error, found.interval(0.95)


def truth(name: str, found: Scan, made: Mapping[str, Choice], result: Mapping[str, Any], runs: Path) -> Truth:
    """Read a case's study."""
    screened, fresh, losses, tokens = {}, {}, {}, np.zeros(0)
    arms = {arm["name"]: arm for arm in result["arms"]}
    plans = {name: Plan.from_json(arm["plan"]) for name, arm in arms.items()}
    for arm_name, arm in arms.items():
        tuned: dict[float, list[float]] = {}
        for told in arm["tuning"]:
            bad = told["diverged"] or told["nll"] is None
            tuned.setdefault(told["lr"], []).append(math.inf if bad else told["nll"])
        seeds = {}
        for told in arm["runs"]:
            if not told["diverged"]:
                _, tokens, seeds[told["seed"]] = read_examples(runs / told["digest"])
        if len(seeds) == len(arm["runs"]) and seeds:  # a choice that diverged is out of the race
            screened[arm_name] = min(float(np.mean(listed)) for listed in tuned.values())
            losses[arm_name] = seeds
            fresh[arm_name] = float(np.mean([x.sum() / tokens.sum() for x in seeds.values()]))
    return Truth(
        name=name,
        steps=result["spec"]["steps"],
        screened=screened,
        fresh=fresh,
        losses=losses,
        tokens=tokens,
        kinds={arm: made[arm].kind for arm in fresh},
        predicted=predictions(found, {name: plans[name] for name in fresh}),
        base=result["base_nll"],
        cost=COST,
    )


def plans_of(anatomy: Anatomy, made: Mapping[str, Choice], names: Iterable[str]) -> dict[str, Plan]:
    """Choice → its plan."""
    return {name: place(anatomy, made[name].placement) for name in names}


def predictions(found: Scan, plans: Mapping[str, Plan]) -> dict[str, dict[str, float]]:
    """Column → choice → what the column says that the plan gains."""
    sites = list({row.site.path: row.site for plan in plans.values() for row in plan.rows}.values())
    predicted: dict[str, dict[str, float]] = {}
    for column, reading in found.readings.items():
        if reading.silent is None:
            curves = gains(reading, sites)
            predicted[column] = {
                name: sum(sum(curves.get(path, [])[:rank]) for path, rank in plan.ranks.items())
                for name, plan in plans.items()
            }
    return predicted


def keep_losses(case: Truth, path: Path) -> None:
    """Write every fresh loss: a row for each choice and seed, with the summed loss of each example and its tokens, so
    that choices trained later can be compared with these row by row."""
    import pyarrow as pa
    from pyarrow import parquet

    rows = [(choice, seed, nll) for choice, seeds in case.losses.items() for seed, nll in seeds.items()]
    table = {
        "choice": [choice for choice, _, _ in rows],
        "seed": [seed for _, seed, _ in rows],
        "nll": [nll.astype("float32") for _, _, nll in rows],
        "tokens": [case.tokens.astype("int32")] * len(rows),
    }
    parquet.write_table(pa.table(table), path, compression="zstd")


def kept_losses(path: Path) -> tuple[dict[str, dict[int, np.ndarray]], np.ndarray]:
    """(choice → seed → summed losses of the examples, counted tokens of each), as `keep_losses` wrote them."""
    from pyarrow import parquet

    found: dict[str, dict[int, np.ndarray]] = {}
    tokens = np.zeros(0)
    for row in parquet.read_table(path).to_pylist():
        found.setdefault(row["choice"], {})[row["seed"]] = np.array(row["nll"], dtype=np.float64)
        tokens = np.array(row["tokens"], dtype=np.float64)
    return found, tokens
