"""Search the runs of a study for two adapters that two definitions of the loss rank differently.

    python tools/definitions.py DIR/runs docs/results/definitions.md

Every pair of finished runs that were judged on the same rows is compared under the token mean and under every other
definition that losses of examples allow (`loratlas.loss_audit.definition_ranking`); the page says how many
pairs are reversed, and shows for each definition the pair that is reversed most clearly. Several folders may be given.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from loratlas.loss_audit.definition_ranking import Disagreement, disagreements
from loratlas.loss_audit.definitions import REFERENCE, Definition, LossEvidence, value
from loratlas.loss_audit.token_table import LossTable
from loratlas.study.execution.run_records import read_examples, read_record

BY = Definition(name="token_mean")
OTHERS = [
    Definition(name="example_mean", aggregate="example"),
    Definition(name="batch_mean_8", aggregate="batch", batch_size=8),
    Definition(name="mean_example_perplexity", aggregate="log_mean_exp"),
    Definition(name="median", aggregate="median"),
]
WORDS = {
    "token_mean": "token mean",
    "example_mean": "example mean",
    "batch_mean_8": "mean of batches of 8 (Trainer)",
    "mean_example_perplexity": "mean of the examples' perplexities, its logarithm",
    "median": "median of the examples",
}


class Run(NamedTuple):
    """A finished run: its name and phase for people, and its losses."""

    name: str
    phase: str
    arm: str
    table: LossTable


def runs_of(folder: Path) -> Iterator[Run]:
    """Every run that finished and did not diverge, by arm, rate and seed."""
    for run in sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."):
        record = read_record(run)
        if record is None or record.get("diverged") or record["key"]["phase"] == "base":
            continue
        key = record["key"]
        example, n, nll = read_examples(run)
        table = LossTable(
            example=example,
            position=np.zeros_like(example),
            part=np.zeros(len(example), dtype=np.int8),
            tokens=n,
            nll=nll,
        )
        name = f"{key['arm']}, rate {key['lr']:g}, seed {key['seed']}"
        yield Run(name=name, phase=key["phase"], arm=key["arm"], table=table)


def judged_alike(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs by the rows that they were judged on."""
    groups: dict[tuple[str, bytes], list[Run]] = {}
    for run in runs:
        rows = np.concatenate([run.table.example, run.table.tokens]).tobytes()
        groups.setdefault((run.phase, rows), []).append(run)
    return list(groups.values())


def clear(found: Disagreement) -> float:
    """How clearly a pair is reversed: the smaller of its two differences, nats."""
    return min(abs(found.difference), abs(found.difference + found.shift))


def pairs_of(runs: Sequence[Run]) -> list[tuple[Run, Run, Disagreement]]:
    """Every pair under every definition."""
    listed = []
    for one, two in combinations(runs, 2):
        result = disagreements({one.name: one.table, two.name: two.table}, OTHERS, by=BY)
        listed += [(one, two, each) for each in result]
    return listed


def page(groups: Sequence[list[Run]], sources: Sequence[str]) -> str:
    """The page, in Markdown."""
    pairs = [pair for group in groups for pair in pairs_of(group)]
    judged = sum(len(group) * (len(group) - 1) // 2 for group in groups)
    runs = sum(len(group) for group in groups)
    lines = [
        "# Do definitions rank the adapters of a study differently?",
        "",
        f"Runs: {', '.join(sources)}: {runs} finished adapters, {judged} pairs that were judged on the same rows.",
        "Each pair was compared by the token mean and by every other definition that losses of examples allow; a pair",
        "is reversed if one definition puts the first adapter ahead and the other the second. That is a fact about",
        "these adapters, and no finding about their arms: findings have intervals of their own.",
        "",
        "| definition | pairs reversed | of different arms | largest shift that these rows allow, median |",
        "|---|---|---|---|",
    ]
    best: dict[str, tuple[Run, Run, Disagreement]] = {}
    for other in OTHERS:
        mine = [pair for pair in pairs if pair[2].other == other.name]
        turned = [pair for pair in mine if pair[2].flips]
        apart = [pair for pair in turned if pair[0].arm != pair[1].arm]
        bound = f"{np.median([pair[2].bound or 0.0 for pair in mine]):.4f} nats"
        share = f"{len(turned)} of {len(mine)} ({len(turned) / max(1, len(mine)):.1%})"
        lines.append(f"| {WORDS[other.name]} | {share} | {len(apart)} | {bound} |")
        if turned:
            best[other.name] = max(apart or turned, key=lambda pair: clear(pair[2]))
    if not best:
        return "\n".join([*lines, "", "**No pair is ranked differently by any of them.**", ""])
    lines += ["", "## The clearest pair of each", ""]
    for name, (one, two, found) in best.items():
        other = next(definition for definition in OTHERS if definition.name == name)
        lines += [
            f"**{WORDS[name]}** ({one.phase} runs)",
            "",
            f"| adapter | token mean | {WORDS[name]} |",
            "|---|---|---|",
            *(f"| {run.name} | {_of(BY, run):.5f} | {_of(other, run):.5f} |" for run in (one, two)),
            f"| difference | {found.difference:+.5f} | {found.difference + found.shift:+.5f} |",
            "",
            f"The shift of {found.shift:+.5f} opposes the difference of {found.difference:+.5f} and exceeds it; the"
            f" bound for these rows is {found.bound or 0.0:.5f}.",
            "",
        ]
    return "\n".join(lines)


def _of(definition: Definition, run: Run) -> float:
    return value(definition, LossEvidence(tables={REFERENCE: run.table}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="the folder `runs` of a study, finished or not")
    parser.add_argument("out", type=Path, help="the Markdown file to write")
    options: Any = parser.parse_args()
    groups = [group for folder in options.runs for group in judged_alike(list(runs_of(folder)))]
    names = [folder.resolve().parent.name for folder in options.runs]
    options.out.write_text(page(groups, names), encoding="utf-8")


if __name__ == "__main__":
    main()
