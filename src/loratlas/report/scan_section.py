"""The scan of a study: what was measured before training, how far it repeats, and why ranks are where they are."""

from __future__ import annotations

from loratlas.report.quotes import Ledger, Phrase
from loratlas.report.tables import Table


def lead(ledger: Ledger) -> Phrase:
    """How the scan was made, and whether its order held."""
    arms = [i for i in ledger.items("/arms") if ledger.at(f"/arms/{i}/plan/sites/0/why")]
    named: list[Phrase] = [(ledger.word(f"/arms/{i}/name"),) for i in arms]
    parts: Phrase = ("A scan read ", ledger.quote("count", "/scan/rows"), " training rows, the price of ")
    parts += (ledger.quote("rate", "/scan/cost_in_steps"), " training steps, and placed ")
    for number, name in enumerate(named):
        parts += (*((", ",) if number else ()), *name)
    if ledger.at("/scan/settled"):
        parts += (". Its order had settled: one half of the rows says what the other half says.",)
    else:
        parts += (". Its order had not settled when the rows ended.",)
    return parts


def caption(ledger: Ledger) -> Phrase:
    """The map of scores in words."""
    return (
        "Map of scores by ",
        ledger.word("/scan/signals/0/name"),
        ", ",
        ledger.word("/scan/signals/0/unit"),
        ": layers upwards, roles sideways.",
    )


def signals(ledger: Ledger) -> Table:
    """One row for each score: what it is and how far its order repeats."""
    indices = tuple(ledger.items("/scan/signals"))
    return Table(
        columns=("Score", "Unit", "Pays where", "Adam", "Repeats, Kendall", "Top of the order"),
        rows=tuple(
            (
                (ledger.quote("words", f"/scan/signals/{i}/name"),),
                (ledger.word(f"/scan/signals/{i}/unit"),),
                (ledger.word(f"/scan/signals/{i}/pays"),),
                (ledger.word(f"/scan/signals/{i}/adam"),),
                (ledger.quote("tau", f"/scan/signals/{i}/repeats"),),
                (ledger.quote("tau", f"/scan/signals/{i}/repeats_top"),),
            )
            for i in indices
        ),
        keys=(None,) * len(indices),
    )


def reasons(ledger: Ledger) -> Table:
    """Every site of every arm that a scan placed: its rank, and why."""
    rows: list[tuple[Phrase, ...]] = []
    keys: list[int | None] = []
    for i in ledger.items("/arms"):
        for j in ledger.items(f"/arms/{i}/plan/sites"):
            at = f"/arms/{i}/plan/sites/{j}"
            if ledger.at(f"{at}/why"):
                rows.append(
                    (
                        (ledger.word(f"{at}/module"),),
                        (ledger.quote("count", f"{at}/rank"),),
                        (ledger.word(f"{at}/why"),),
                    )
                )
                keys.append(i)
    return Table(columns=("Site", "Rank", "Why"), rows=tuple(rows), keys=tuple(keys))
