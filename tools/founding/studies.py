"""The page of all studies, from their committed results: side by side first, then each with its tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tools.founding.page import filled
from tools.results import arms, findings, table, tuning

from loratlas.claims.claim_tables import mark, short_of_protocol, word
from loratlas.claims.comparisons import HALVES, Contrast, contrasts
from loratlas.claims.study_extract import base_name, extract, task_name
from loratlas.report.sentences import VERDICTS

HEAD = """# Full, attention or feed-forward? The studies

Every study here was run by a recipe in [`recipes/`](../../recipes) under the protocol of
[how a study decides](../method/statistics.md): learning rates tuned per arm on held-out rows, then fresh seeds judged
on rows that nothing was chosen on. Settings, plans, the losses of every run, versions and machine stand in each JSON
file. This page is written from those files by `python tools/claims.py`, and a test compares; what follows from it for
practice: [the founding study, done again](founding-study.md).
"""

SUPERSEDED = """
**Superseded** studies were run by the first edition of the protocol: rates 2.5 apart, their uncertainty no part of the
intervals. Where curves are as steep as nl2bash's, such studies call arms better or worse that do not differ
([calibration](../method/statistics.md)). Large differences are beyond what a rate can do; small ones are not settled by
them.
"""

EDITIONS = ("second edition", "second edition, short of it", "superseded")

LAST = """
The findings are about these bases, these tasks, these budgets and these lengths of training. They say nothing about
large models.
"""


def studies_page(studies: Iterable[Mapping[str, Any]]) -> str:
    """The page.

    Args:
        studies: finished ones, as `loratlas study --json` prints them.
    """
    listed = sorted(
        studies,
        key=lambda study: (
            bool(study.get("superseded")),
            -study["base"]["parameters"],
            place(study),
            study["name"],
        ),
    )
    old = SUPERSEDED if any(study.get("superseded") for study in listed) else ""
    sections = "\n".join(section(study) for study in listed)
    return f"{HEAD}{old}\n{overview(listed)}\n{sections}{LAST}"


def place(study: Mapping[str, Any]) -> str:
    return f"{task_name(study['data']['train']['source'])} on {base_name(study['base']['model'])}"


def overview(studies: Sequence[Mapping[str, Any]]) -> str:
    """Each half of a model against all layers at equal parameters, a study a row; verdicts and orders are counted for
    each edition of the protocol by itself, since a verdict of the first may turn in the second."""
    rows, orders, verdicts = [], Counter[tuple[str, str]](), Counter[tuple[str, str, str]]()
    for study in studies:
        short = extract(study)
        found = {one.half: one for one in contrasts([short]) if one.equal}
        edition = edition_of(short)
        verdicts.update((half, edition, one.finding["verdict"]) for half, one in found.items())
        reference = next(arm for arm in study["arms"] if arm["name"] == study["reference"])
        rows.append(
            [
                f"[{study['name']}]({study['name']}.json)",
                f"{base_name(study['base']['model'])} ({study['base']['model_type']})",
                task_name(study["data"]["train"]["source"]),
                f"{study['spec']['steps']:,}",
                f"{reference['trainable']:,}",
                f"{study['base_nll']:.3f}",
                f"{reference['nll']:.3f}",
                *(difference(found[half]) if half in found else "–" for half in HALVES),
            ]
        )
        if len(found) == len(HALVES):
            orders[order(found), edition] += 1
    head = [
        "study",
        "base",
        "task",
        "steps",
        "parameters",
        "loss before",
        "all",
        "attention − all",
        "feed-forward − all",
    ]
    editions = [edition for edition in EDITIONS if any(counted == edition for _, counted, _ in verdicts)]
    counts = [
        [word(half), edition, *(str(verdicts[half, edition, verdict]) for verdict in VERDICTS)]
        for half in HALVES
        for edition in editions
    ]
    listed = sorted({words for words, _ in orders}, key=lambda words: [-orders[words, e] for e in editions])
    common = [[words, *(str(orders[words, edition]) for edition in editions)] for words in listed]
    return f"""## Side by side

At equal parameters; losses are nats per answer token, of classifiers nats per row, and the share is of what `all` gains
over the base.

{table(head, rows)}

{table(["arm", "edition", *VERDICTS], counts)}

Orders, lowest loss first, whether or not their differences are findings, in studies of each edition:

{table(["order", *editions], common)}
"""


def difference(one: Contrast) -> str:
    low, high = one.finding["ci"]
    share = "" if one.share is None else f", {100 * one.share:+.1f} %"
    return (
        f"{one.finding['difference']:+.4f} ({low:+.4f} to {high:+.4f}){share}: "
        f"**{one.finding['verdict']}**{mark(one.study)}"
    )


def edition_of(short: Mapping[str, Any]) -> str:
    """Which edition of the protocol a study was run by, and whether it did less than that asks for.

    Args:
        short: the study's extract.
    """
    return EDITIONS[2] if short["superseded"] else EDITIONS[1] if short_of_protocol(short) else EDITIONS[0]


def order(found: Mapping[str, Contrast]) -> str:
    """All layers and the two halves, from the lowest loss to the highest."""
    losses = {"all": 0.0} | {word(half): one.finding["difference"] for half, one in found.items()}
    return " < ".join(sorted(losses, key=lambda name: losses[name]))


def section(study: Mapping[str, Any]) -> str:
    """One study: what was done, its arms, its findings, its tuning, and what its notes say."""
    spec, machine = study["spec"], study["machine"]
    unit = study.get("task", {}).get("unit", "nats per token")
    seeds = max(len(arm["runs"]) for arm in study["arms"])
    short = extract(study)
    tuned = f"{short['tuning_seeds'] or 'no'} tuning seeds "
    tuned += "at each rate" if short["superseded"] else "near each optimum"
    about = (
        f"{base_name(study['base']['model'])} ({study['base']['parameters']:,} parameters), {spec['steps']:,} steps of "
        f"{spec['batch_size']} rows, {spec['dtype']}, judged on {seeds} seeds × "
        f"{study['data']['evaluation']['rows']:,} rows; loss before training {study['base_nll']:.3f} {unit}; "
        f"{study['runs']['finished']} runs on {machine['cores']} cores of {machine['processor']}; "
        f"{edition_of(short)}, {tuned}."
    )
    measures = [metrics(study)] if any(arm.get("metrics") for arm in study["arms"]) else []
    notes = [
        f"- {note.replace('${LORATLAS_SHARED}/data/', '')}"
        for note in study["notes"]
        if not note.startswith("The findings are about") and "near each optimum" not in note
    ]
    parts = [
        f"## {study['name']}: {place(study)}", filled(about), arms(study), findings(study, mark(short)), *measures,
        "Tuning, mean of the seeds:", tuning(study), filled(reversals(study)),
        "\n".join(notes),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def metrics(study: Mapping[str, Any]) -> str:
    """What written answers or labels are worth, per arm."""
    names = [metric["name"] for metric in study["arms"][0]["metrics"]]
    rows = [
        [
            arm["name"],
            *(
                f"{metric['value']:.3f} ({metric['ci'][0]:.3f} to {metric['ci'][1]:.3f})"
                for metric in arm["metrics"]
            ),
        ]
        for arm in study["arms"]
    ]
    return table(["arm", *names], rows)


def reversals(study: Mapping[str, Any]) -> str:
    """Whether another measure ranks two arms the other way round."""
    ranks = study.get("ranks")
    if not ranks:
        return ""
    opposed = [
        f"{pair['first']} and {pair['second']} by {pair['by']}"
        + (" (established)" if pair["established"] else "")
        for pair in ranks["opposed"]
    ]
    if not opposed:
        return f"No other measure ranks two arms the other way round than the token mean ({ranks['compared']} pairs)."
    return (
        f"Of {ranks['compared']} pairs of arms and other measures these rank the arms the other way round than the "
        f"token mean, not established unless said: {'; '.join(opposed)}."
    )
