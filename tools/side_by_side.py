"""Does the ranking of placements carry over? Studies of the same arms on several bases and tasks, in one table.

    python tools/side_by_side.py [--results docs/results] > docs/results/side_by_side.md

Reads every study in the folder whose arms include full, attention and feedforward. Nothing is tested here that a study
has not tested: a row holds a study's own findings, and the tables below it count them.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from results import table

from loratlas.claims.study_extract import base_name, task_name
from loratlas.report.sentences import VERDICTS

ARMS = ("full", "attention", "feedforward")
HEADINGS = {"full": "full", "attention": "attention", "feedforward": "feed-forward"}


def studies(folder: Path) -> list[dict[str, Any]]:
    """The finished ones with these arms, by base and task."""
    read = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    known = [
        study
        for study in read
        if study.get("schema") == "loratlas.study"
        and study["complete"]
        and set(ARMS) <= {arm["name"] for arm in study["arms"]}
    ]
    return sorted(known, key=lambda study: (base(study), task(study), study["name"]))


def base(study: dict[str, Any]) -> str:
    return f"{base_name(study['base']['model'])} ({study['base']['model_type']})"


def task(study: dict[str, Any]) -> str:
    return task_name(study["data"]["train"]["source"])


def arm(study: dict[str, Any], name: str) -> dict[str, Any]:
    return next(arm for arm in study["arms"] if arm["name"] == name)


def finding(study: dict[str, Any], name: str) -> dict[str, Any]:
    return next(found for found in study["findings"] if (found["arm"], found["versus"]) == (name, "full"))


def order(study: dict[str, Any]) -> tuple[str, ...]:
    """Arms from the lowest loss to the highest."""
    return tuple(sorted(ARMS, key=lambda name: arm(study, name)["nll"]))


def said(study: dict[str, Any], name: str) -> str:
    """The difference to full with its interval and verdict, and its share of what full gains over the base."""
    found = finding(study, name)
    low, high = found["ci"]
    gained = study["base_nll"] - arm(study, "full")["nll"]
    share = f", {100 * found['difference'] / gained:+.1f} %" if gained > 0 else ""
    return f"{found['difference']:+.4f} ({low:+.4f} to {high:+.4f}){share}: **{found['verdict']}**"


def rows(found: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            base(study),
            task(study),
            f"{study['spec']['steps']:,}",
            f"{arm(study, 'full')['trainable']:,}",
            f"{study['base_nll']:.3f}",
            f"{arm(study, 'full')['nll']:.4f}",
            said(study, "attention"),
            said(study, "feedforward"),
            " < ".join(HEADINGS[name] for name in order(study)),
        ]
        for study in found
    ]


def superseded(found: list[dict[str, Any]]) -> str:
    """What is said where studies were run by an earlier edition of the method."""
    old = sum(bool(study.get("superseded")) for study in found)
    if not old:
        return ""
    which = "All of these studies" if old == len(found) else f"{old} of these {len(found)} studies"
    return (
        f"\n**Superseded.** {which} were run by the first edition of the method, with rates 2.5 apart: their small\n"
        "differences are not settled.\n"
    )


def page(found: list[dict[str, Any]]) -> str:
    head = [
        "base",
        "task",
        "steps",
        "parameters",
        "loss before",
        "full",
        "attention − full",
        "feed-forward − full",
        "order",
    ]
    counts = []
    for name in ARMS[1:]:
        verdicts = Counter(finding(study, name)["verdict"] for study in found)
        counts.append([HEADINGS[name], *(str(verdicts[said]) for said in VERDICTS)])
    orders = Counter(order(study) for study in found)
    common = [[" < ".join(HEADINGS[name] for name in one), str(count)] for one, count in orders.most_common()]
    return f"""# Does the ranking of placements carry over?

Written by `python tools/side_by_side.py` from the studies in this folder. Every study gives its three arms the same
trainable parameters, tunes each arm's learning rate on two seeds, and judges five fresh seeds on rows that nothing was
chosen on ([protocol](../method/statistics.md)). Losses are nats per answer token, of classifiers nats per row; the
share is of what full gains over the base.
{superseded(found)}
{table(head, rows(found))}

Verdicts against full at the same parameters, over {len(found)} studies:

{table(["arm", *VERDICTS], counts)}

Orders, lowest loss first, whether or not their differences are findings:

{table(["order", "studies"], common)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    print(page(studies(parser.parse_args().results)), end="")


if __name__ == "__main__":
    main()
