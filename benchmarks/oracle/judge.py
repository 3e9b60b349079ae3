"""From the runs of the bench to regret, rank correlation and what they are worth.

For every case: the **winner** is the choice with the lowest loss on the screening seeds, at its own best rate. On the
fresh seeds

    regret of a choice, lower bound = loss(choice) − loss(winner)
                        upper bound = loss(choice) − lowest fresh mean of any choice

The winner may not be the best, and the lowest fresh mean is low partly by luck: the truth is between. Pooled over cases

    relative regret = Σ regret / Σ (mean of the random plans − lowest fresh mean)

A case whose noise (standard error of a choice's fresh mean, over seeds) exceeds `TIE` of its spread (standard deviation
of the choices' means) is a tie: it is told in nats and left out of relative regret.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.oracle.choices import REFERENCE, Choice
from loratlas.placement.plan import Plan
from loratlas.study.records import read_examples
from loratlas.study.scan import STEP
from loratlas.study.scores import Scan
from loratlas.study.spending import gains
from loratlas.study.stats import estimate

TIE = 0.2
DELTA = 0.01
"""Nats per token within which two choices count as equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What training said about one case.

    Args:
        name: of the case. steps: of a run.
        screened, fresh: choice → mean loss on the screening and on the fresh seeds, nats per token.
        losses: choice → seed → summed losses of the examples [N]; tokens: counted tokens of each [N].
        kinds: choice → preset, role, pair, random or rule.
        predicted: column → choice → what the column says it gains.
        base: loss of the bare base.
        cost: of what `--placement auto` reads, in training steps of 16 rows, without `probe`'s trials.
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

    def difference(self, one: str, two: str) -> tuple[float, float, tuple[float, float]]:
        """(one − two, standard error, 95 % interval) in nats per token, paired by seed and example."""
        if one == two:
            return 0.0, 0.0, (0.0, 0.0)
        seeds = [seed for seed in self.losses[one] if seed in self.losses[two]]
        found = estimate(np.stack([self.losses[one][s] - self.losses[two][s] for s in seeds]), self.tokens)
        return found.value, found.error, found.interval(0.95)

    def regret(self, choice: str) -> dict[str, Any]:
        """Bounds of a choice's regret, with the interval of the lower one."""
        low, error, interval = self.difference(choice, self.winner)
        return {
            "choice": choice,
            "lower": low,
            "lower_ci": list(interval),
            "error": error,
            "upper": self.fresh[choice] - self.best,
        }


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
    predicted: dict[str, dict[str, float]] = {}
    for column, reading in found.readings.items():
        if reading.silent is None:
            sites = [row.site for plan in plans.values() for row in plan.rows]
            curves = gains(reading, list({site.path: site for site in sites}.values()))
            predicted[column] = {
                arm: sum(sum(curves.get(path, [])[:rank]) for path, rank in plans[arm].ranks.items())
                for arm in fresh
            }
    return Truth(
        name=name,
        steps=result["spec"]["steps"],
        screened=screened,
        fresh=fresh,
        losses=losses,
        tokens=tokens,
        kinds={arm: made[arm].kind for arm in fresh},
        predicted=predicted,
        base=result["base_nll"],
        cost=found.rows / STEP,
    )


def report(cases: Sequence[tuple[Truth, Mapping[str, Choice]]]) -> dict[str, Any]:
    """Everything that is told about the bench, as plain data."""
    return {
        "cases": [_case(case, made) for case, made in cases],
        "rules": _rules(cases),
        "correlation": _correlation([case for case, _ in cases]),
        "left_out": _left_out(cases),
    }


def _trained(made: Mapping[str, Choice], name: str) -> str:
    """The choice that was trained for this one."""
    return made[name].same_as or name


def _contestants(case: Truth, made: Mapping[str, Choice]) -> dict[str, str]:
    """Rule → choice: published sets of modules, rules with a plan of their own, and what each column would pick of the
    choices that are the same for everyone."""
    found = {name: name for name, kind in case.kinds.items() if kind == "preset"}
    found |= {name: _trained(made, name) for name, choice in made.items() if choice.kind == "rule"}
    common = [name for name, kind in case.kinds.items() if kind in ("preset", "role", "pair", "random")]
    for column, told in case.predicted.items():
        among = [name for name in common if name in told]
        found[f"pick {column}"] = max(among, key=lambda name: (told[name], name))
    return {rule: choice for rule, choice in found.items() if choice in case.fresh}


def _case(case: Truth, made: Mapping[str, Choice]) -> dict[str, Any]:
    auto = _trained(made, "rule gradient") if "rule gradient" in made else None
    against = None
    if auto in case.fresh and REFERENCE in case.fresh and auto is not None:
        value, _, interval = case.difference(auto, REFERENCE)
        against = {
            "difference": value,
            "ci": list(interval),
            "non_inferior": interval[1] <= DELTA,
            "better": interval[1] < 0,
        }
    return {
        "case": case.name,
        "base_nll": case.base,
        "steps": case.steps,
        "best": case.best,
        "winner": case.winner,
        "scale": case.scale,
        "noise_over_spread": case.noise,
        "tie": case.tie,
        "fresh": dict(sorted(case.fresh.items(), key=lambda item: item[1])),
        "screened": dict(case.screened),
        "auto_against_all": against,
        "scan_steps": case.cost,
        "scan_of_a_run": case.cost / case.steps,
        "regret": {rule: case.regret(choice) for rule, choice in _contestants(case, made).items()},
    }


def _rules(cases: Sequence[tuple[Truth, Mapping[str, Choice]]]) -> list[dict[str, Any]]:
    """Pooled regret of every rule that has a choice in every case that is no tie."""
    real = [(case, made) for case, made in cases if not case.tie]
    chosen = [_contestants(case, made) for case, made in real]
    names = [rule for rule in (chosen[0] if chosen else {}) if all(rule in told for told in chosen)]
    scale = sum(case.scale for case, _ in real)
    found = []
    for rule in names:
        told = [case.regret(picks[rule]) for (case, _), picks in zip(real, chosen, strict=True)]
        lower, upper = (sum(regret[side] for regret in told) for side in ("lower", "upper"))
        error = math.sqrt(sum(regret["error"] ** 2 for regret in told))
        found.append(
            {
                "rule": rule,
                "lower_nats": lower,
                "upper_nats": upper,
                "lower": lower / scale,
                "lower_ci": [(lower - 1.96 * error) / scale, (lower + 1.96 * error) / scale],
                "upper": upper / scale,
                "cases": len(told),
            }
        )
    random = [sum(case.scale for case, _ in real)]
    if real:
        found.append(
            {
                "rule": "random",
                "lower_nats": None,
                "upper_nats": random[0],
                "lower": None,
                "lower_ci": [None, None],
                "upper": 1.0,
                "cases": len(real),
            }
        )
    return sorted(found, key=lambda row: row["upper"])


def _correlation(cases: Sequence[Truth]) -> list[dict[str, Any]]:
    """Spearman's ρ between what a column says of the choices and their fresh losses, pooled by Fisher's z."""
    from scipy.stats import spearmanr

    columns = list(dict.fromkeys(column for case in cases for column in case.predicted))
    found = []
    for column in columns:
        rows, z, weight = [], 0.0, 0
        for case in cases:
            told = case.predicted.get(column)
            if told is None or len(told) < 5 or len(set(told.values())) < 2:
                continue
            names = list(told)
            rho = float(spearmanr([told[n] for n in names], [-case.fresh[n] for n in names]).statistic)  # pyright: ignore[reportAttributeAccessIssue]
            rows.append({"case": case.name, "rho": rho, "choices": len(names)})
            z += (len(names) - 3) * math.atanh(max(min(rho, 0.999), -0.999))
            weight += len(names) - 3
        if not rows:
            continue
        half = 1.96 * math.sqrt(1.06 / weight)  # 1.06: of a rank correlation (Fieller, Hartley, Pearson 1957)
        found.append(
            {
                "column": column,
                "rho": math.tanh(z / weight),
                "ci": [math.tanh(z / weight - half), math.tanh(z / weight + half)],
                "cases": rows,
            }
        )
    return sorted(found, key=lambda row: -row["rho"])


def _left_out(cases: Sequence[tuple[Truth, Mapping[str, Choice]]]) -> list[dict[str, Any]]:
    """For every case, the rule that is best on the others (another task, and another base where there is one)."""
    real = [(case, made) for case, made in cases if not case.tie]
    found = []
    for place, (case, made) in enumerate(real):
        base, task, *_ = case.name.split()
        bases = {other.name.split()[0] for other, _ in real}
        others = [
            pair
            for number, pair in enumerate(real)
            if number != place
            and pair[0].name.split()[1] != task
            and (len(bases) == 1 or pair[0].name.split()[0] != base)
        ]
        ranked = [row for row in _rules(others) if row["rule"].startswith("rule ") and row["rule"] in made]
        picks = _contestants(case, made)
        ranked = [row for row in ranked if row["rule"] in picks]
        if ranked:
            rule = ranked[0]["rule"]
            told = case.regret(picks[rule])
            found.append({"case": case.name, "rule": rule, "upper": told["upper"] / case.scale, **told})
    return found
