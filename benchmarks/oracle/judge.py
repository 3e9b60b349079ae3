"""From what training said to regret, rank correlation and what they are worth.

A case becomes a **record**, plain data that is kept in a file of its own, so that cases trained at different times are
judged together. Pooled over cases

    relative regret = Σ regret / Σ (mean of the random plans − lowest fresh mean)

in which ties have no part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.oracle.choices import REFERENCE, Choice
from benchmarks.oracle.truth import Truth, difference

DELTA = 0.01
"""Nats per token within which two choices count as equal."""

AUTO = "rule probe_yield"
"""What `--placement auto` does."""

CHOSEN_ON = tuple(f"llama-mini {task} all:1" for task in ("retrieval", "nl2bash", "e2e", "facts-300"))
"""Cases whose losses chose what `AUTO` does: its score, and how long its trials are."""

Record = Mapping[str, Any]


def record(case: Truth, made: Mapping[str, Choice]) -> dict[str, Any]:
    """A case as plain data: every choice with its losses and its regret, and who chose what."""
    choices = {
        name: {"kind": choice.kind, "placement": choice.placement, "same_as": choice.same_as}
        for name, choice in made.items()
    }
    for name in case.fresh:
        choices[name] |= {"screened": case.screened[name], "fresh": case.fresh[name]}
        choices[name] |= {"by_seed": case.means(name), **case.regret(name)}
    return {
        "case": case.name,
        "base_nll": case.base,
        "steps": case.steps,
        "best": case.best,
        "winner": case.winner,
        "scale": case.scale,
        "noise_over_spread": case.noise,
        "tie": case.tie,
        "auto_against_all": against_all(made, case.losses, case.tokens),
        "scan_steps": case.cost,
        "scan_of_a_run": case.cost / case.steps,
        "choices": choices,
        "contestants": _contestants(case, made),
        "predicted": {column: dict(told) for column, told in case.predicted.items()},
    }


def against_all(
    made: Mapping[str, Choice], losses: Mapping[str, Mapping[int, np.ndarray]], tokens: np.ndarray
) -> dict[str, Any] | None:
    """What `AUTO` chose against rank 1 everywhere: difference in nats per token, 95 % interval, what it allows to say.

    None where one of the two has no losses.
    """
    auto = _trained(made, AUTO) if AUTO in made else None
    if auto is None or auto not in losses or REFERENCE not in losses:
        return None
    value, _, (low, high) = difference(losses, tokens, auto, REFERENCE)
    return {"difference": value, "ci": [low, high], "non_inferior": high <= DELTA, "better": high < 0}


def report(records: Sequence[Record]) -> dict[str, Any]:
    """What the records say together."""
    return {
        "rules": _rules(records),
        "unseen": _unseen(records),
        "correlation": _correlation(records),
        "left_out": _left_out(records),
    }


def _trained(made: Mapping[str, Choice], name: str) -> str:
    """The choice that was trained for this one."""
    return made[name].same_as or name


def _contestants(case: Truth, made: Mapping[str, Choice]) -> dict[str, str]:
    """Rule → choice: published sets of modules, rules with a plan of their own, and what each column would pick of the
    choices that are the same for everyone."""
    found = {name: name for name, kind in case.kinds.items() if kind == "preset"}
    found |= {name: _trained(made, name) for name, choice in made.items() if choice.kind == "rule"}
    common = [
        name for name, kind in case.kinds.items() if kind in ("preset", "role", "pair", "hybrid", "random")
    ]
    for column, told in case.predicted.items():
        among = [name for name in common if name in told]
        found[f"pick {column}"] = max(among, key=lambda name: (told[name], name))
    return {rule: choice for rule, choice in found.items() if choice in case.fresh}


def _regret(case: Record, rule: str) -> Mapping[str, Any]:
    return case["choices"][case["contestants"][rule]]


def _rules(cases: Sequence[Record]) -> list[dict[str, Any]]:
    """Pooled regret of every rule that has a choice in every case that is no tie."""
    real = [case for case in cases if not case["tie"]]
    names = [
        rule
        for rule in (real[0]["contestants"] if real else {})
        if all(rule in case["contestants"] for case in real)
    ]
    scale = sum(case["scale"] for case in real)
    found = []
    for rule in names:
        told = [_regret(case, rule) for case in real]
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
    if real:
        found.append(
            {
                "rule": "random",
                "lower_nats": None,
                "upper_nats": scale,
                "lower": None,
                "lower_ci": [None, None],
                "upper": 1.0,
                "cases": len(real),
            }
        )
    return sorted(found, key=lambda row: row["upper"])


def _unseen(cases: Sequence[Record]) -> dict[str, Any] | None:
    """Pooled regret of `AUTO` and of rank 1 everywhere in the cases that nothing of it was chosen by."""
    left = [case for case in cases if not case["tie"] and case["case"] not in CHOSEN_ON]
    upper = {row["rule"]: row["upper"] for row in _rules(left)}
    if AUTO not in upper:
        return None
    names = [case["case"] for case in left]
    return {"cases": names, "upper": upper[AUTO], "upper_everywhere": upper[REFERENCE]}


def _correlation(cases: Sequence[Record]) -> list[dict[str, Any]]:
    """Spearman's ρ between what a column says of the choices and their fresh losses, pooled by Fisher's z."""
    from scipy.stats import spearmanr

    columns = list(dict.fromkeys(column for case in cases for column in case["predicted"]))
    found = []
    for column in columns:
        rows, z, weight = [], 0.0, 0
        for case in cases:
            told = case["predicted"].get(column)
            if told is None or len(told) < 5 or len(set(told.values())) < 2:
                continue
            names = list(told)
            fresh = [-case["choices"][name]["fresh"] for name in names]
            rho = float(spearmanr([told[name] for name in names], fresh).statistic)  # pyright: ignore[reportAttributeAccessIssue]
            rows.append({"case": case["case"], "rho": rho, "choices": len(names)})
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


def _left_out(cases: Sequence[Record]) -> list[dict[str, Any]]:
    """For every case, the rule that is best on the others (another task, and another base where there is one)."""
    real = [case for case in cases if not case["tie"]]
    bases = {case["case"].split()[0] for case in real}
    found = []
    for case in real:
        base, task, *_ = case["case"].split()
        others = [
            other
            for other in real
            if other["case"].split()[1] != task and (len(bases) == 1 or other["case"].split()[0] != base)
        ]
        ranked = [row["rule"] for row in _rules(others) if row["rule"].startswith("rule ")]
        rule = next((rule for rule in ranked if rule in case["contestants"]), None)
        if rule is not None:
            told = _regret(case, rule)
            found.append(
                {
                    "case": case["case"],
                    "rule": rule,
                    "choice": case["contestants"][rule],
                    "upper": told["upper"] / case["scale"],
                    "upper_nats": told["upper"],
                    "lower_nats": told["lower"],
                }
            )
    return found
