"""The scan of a study: what was measured before training, how far it repeats, and why ranks are where they are."""

from __future__ import annotations

from loratlas.report.quotes import Phrase, QuotedStudy
from loratlas.report.tables import Table
from loratlas.scan.advice import DECIDED_BEFORE
from loratlas.signals.registry import TRIAL_COLUMNS


def lead(ledger: QuotedStudy) -> Phrase:
    """How the scan was made, and whether its order held."""
    arms = [i for i in ledger.items("/arms") if ledger.at(f"/arms/{i}/plan/sites/0/why")]
    named: list[Phrase] = [(ledger.word(f"/arms/{i}/name"),) for i in arms]
    visits = "/scan/visits" if ledger.at("/scan/visits") is not None else "/scan/rows"
    parts: Phrase = ("A scan read training rows ", ledger.quote("count", visits), " times, at the cost of ")
    parts += (ledger.quote("rate", "/scan/cost_in_steps"), " training steps, and placed ")
    for number, name in enumerate(named):
        parts += (*((", ",) if number else ()), *name)
    if ledger.at("/scan/settled"):
        trials = ledger.at(f"/scan/signals/{deciding(ledger)}/name") in TRIAL_COLUMNS
        both = "two trials, each on rows of its own," if trials else "the two halves of the rows"
        parts += (f". Its order had settled: {both} agree.",)
    else:
        parts += (". Its order had not settled when the rows ended.",)
    return parts


def deciding(ledger: QuotedStudy) -> int:
    """Index of the score that decided, among the scan's signals."""
    by = ledger.at("/scan/by") or DECIDED_BEFORE
    return next((i for i in ledger.items("/scan/signals") if ledger.at(f"/scan/signals/{i}/name") == by), 0)


def caption(ledger: QuotedStudy) -> Phrase:
    """The map of scores in words."""
    index = deciding(ledger)
    return (
        "Map of scores by ",
        ledger.word(f"/scan/signals/{index}/name"),
        ", ",
        ledger.word(f"/scan/signals/{index}/unit"),
        ": layers upwards, roles sideways.",
    )


def signals(ledger: QuotedStudy) -> Table:
    """One row for each score: what it is and how far its order repeats."""
    indices = tuple(ledger.items("/scan/signals"))
    return Table(
        columns=("Score", "Unit", "Better where", "Adam", "Repeats, Kendall", "Top of the order"),
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


def reasons(ledger: QuotedStudy) -> Table:
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
