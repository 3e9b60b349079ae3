"""The tables of the bench as Markdown, every figure from the JSON beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.oracle.judge import AUTO, DELTA

TARGET = 0.05
"""Upper regret that `--placement auto` is meant to stay below."""


def page(result: Mapping[str, Any]) -> str:
    """The page of a finished (or begun) bench."""
    lines = [
        "# Which rule places adapters best?",
        "",
        f"Made by `{result['command']}`; every case has all its figures in a file in [oracle](oracle). Every choice",
        "spends the same parameters, has its own best learning rate, was screened on some seeds and is judged on fresh",
        "ones. Regret: nats per token that a rule's choice loses, against the winner of the screening seeds (lower",
        "bound) and against the lowest fresh mean (upper bound), over what a random plan loses: 0: best, 1: chance.",
        "",
        *_auto(result),
        "| rule | regret, upper | lower | 95 % interval of the lower | nats, upper | cases |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rules"]:
        interval = " to ".join(_percent(end) for end in row["lower_ci"])
        lines.append(
            f"| {row['rule']} | {_percent(row['upper'])} | {_percent(row['lower'])} | {interval} | "
            f"{row['upper_nats']:.4f} | {row['cases']} |"
        )
    lines += [
        "",
        "`rule …`: a plan of its own. `pick …`: what a score would choose of the presets, roles and random plans.",
        "",
        "| case | best choice | screening's winner | random − best | noise / spread | auto − all | scan, of a run |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in result["cases"]:
        against = case["auto_against_all"]
        told = "–"
        if against is not None:
            ends = " to ".join(f"{end:+.4f}" for end in against["ci"])
            told = f"{against['difference']:+.4f} ({ends})"
        lines.append(
            f"| {case['case']}{' (tie)' if case['tie'] else ''} | {_best(case)} | {case['winner']} | "
            f"{case['scale']:.4f} | {case['noise_over_spread']:.2f} | {told} | {_percent(case['scan_of_a_run'])} |"
        )
    rules = list(dict.fromkeys(rule for case in result["cases"] for rule in case["contestants"]))
    lines += [
        "",
        "Regret in each case, nats per token, upper bound:",
        "",
        "| rule | " + " | ".join(case["case"] for case in result["cases"]) + " |",
        "|---" * (1 + len(result["cases"])) + "|",
    ]
    for rule in rules:
        lines.append(f"| {rule} | " + " | ".join(_cell(case, rule) for case in result["cases"]) + " |")
    lines += [
        "",
        "Rank correlation (Spearman) between what a score predicts of a plan and what training found:",
        "",
        "| score | ρ | 95 % interval |",
        "|---|---|---|",
    ]
    for row in result["correlation"]:
        lines.append(f"| {row['column']} | {row['rho']:+.2f} | {row['ci'][0]:+.2f} to {row['ci'][1]:+.2f} |")
    lines += [
        "",
        "Choosing the best rule is fitting. The rule that was best on the other tasks, on the one left out:",
        "",
        "| left out | rule | regret there, upper |",
        "|---|---|---|",
    ]
    for row in result["left_out"]:
        lines.append(f"| {row['case']} | {row['rule']} | {_percent(row['upper'])} |")
    lines += ["", "No figure here is a time: other work may have run on the machine."]
    return "\n".join(lines) + "\n"


def _auto(result: Mapping[str, Any]) -> list[str]:
    """What the table says of `--placement auto`, and what it was meant to reach."""
    rows = [row for row in result["rules"] if not row["rule"].startswith("pick ")]
    found = next((row for row in rows if row["rule"] == AUTO), None)
    if found is None:
        return []
    better = [row["rule"] for row in rows if row["upper"] < found["upper"]]
    reached = "reached" if found["upper"] <= TARGET else "**not reached**"
    lines = [
        f"`--placement auto` follows `{AUTO}`: {_percent(found['upper'])} of what random plans lose. "
        f"Target {100 * TARGET:.0f} %: {reached}.",
        f"Rules that lose less: {', '.join(better) if better else 'none'}.",
    ]
    if unseen := result["unseen"]:
        where = ", ".join(name.rsplit(" ", 1)[0] for name in unseen["cases"])
        lines.append(
            f"Its score and the length of its trials were chosen by losses of the other cases; in {where} alone it "
            f"loses {_percent(unseen['upper'])}, `all` {_percent(unseen['upper_everywhere'])}."
        )
    told = [(case["case"], case["auto_against_all"]) for case in result["cases"] if case["auto_against_all"]]
    decided = [name for name, each in told if _verdict(each) != "undetermined"]
    lines.append(
        "Against `all` at the same parameters: "
        + "; ".join(f"{name.rsplit(' ', 1)[0]}: {_verdict(each)}" for name, each in told)
        + f". Better in {sum(each['better'] for _, each in told)} of {len(decided)} that could be told."
    )
    lines.append("What else was tried is in [the journal](../../docs/journal.md).")
    return [*lines, ""]


def _verdict(against: Mapping[str, Any]) -> str:
    """What an interval of auto − all allows to say."""
    low = against["ci"][0]
    if against["better"]:
        return "better"
    if low > DELTA:
        return "worse"
    return "not worse" if against["non_inferior"] else "undetermined"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _best(case: Mapping[str, Any]) -> str:
    """The choice with the lowest fresh mean."""
    trained = {name: told["fresh"] for name, told in case["choices"].items() if "fresh" in told}
    return min(trained, key=lambda name: (trained[name], name))


def _cell(case: Mapping[str, Any], rule: str) -> str:
    """Regret of a rule's choice, and which choice that is where the rule has no plan of its own."""
    choice = case["contestants"].get(rule)
    if choice is None:
        return "–"
    regret = f"{case['choices'][choice]['upper']:.4f}"
    return regret if choice == rule else f"{regret} ({choice})"
