"""What a study measured beside the loss: other definitions of it, the task, and what is forgotten. Only quotes."""

from __future__ import annotations

from typing import Any

from loratlas.report.quotes import MISSING, Phrase, QuotedStudy
from loratlas.report.tables import Table

_VALUES = {"perplexity": "perplexity", "share": "percent"}
_DIFFERENCES = {"share": "points"}
_UNITS = {
    "loss": "nats per token",
    "row_loss": "nats per row",
    "pair_loss": "nats per pair",
    "margin": "nats times β, higher is better",
    "perplexity": "perplexity",
    "share": "share of the rows, higher is better",
    "f1": "mean F1 of the classes, higher is better",
    "rouge": "ROUGE-L, higher is better",
}
_TASK = ("share", "f1", "rouge", "margin")
"""Units of task metrics."""


def flips(ledger: QuotedStudy, i: int) -> tuple[Phrase, ...]:
    """Of a finding: a sentence for every measure that puts the other arm ahead; none where all agree."""
    at = f"/findings/{i}/flip_sentences"
    return tuple((ledger.word(f"{at}/{j}"),) for j in ledger.items(at))


def mark(ledger: QuotedStudy, i: int) -> str:
    """How a finding is marked: "" where every measure agrees with it.

    >>> study = {"findings": [{"flips": ["median"], "flips_established": False}, {"flips": []}]}
    >>> mark(QuotedStudy(study), 0), mark(QuotedStudy(study), 1)
    ('flips with the definition', '')
    """
    if not ledger.items(f"/findings/{i}/flips"):
        return ""
    measures = ledger.at(f"/findings/{i}/by_measure") or []
    task = {measure.get("by") for measure in measures if measure.get("unit") in _TASK}
    only_task = set(ledger.at(f"/findings/{i}/flips")) <= task
    return "flips with the task metric" if only_task else "flips with the definition"


def orders(ledger: QuotedStudy) -> Table:
    """For every measure the arms, best first, with their values."""
    rows: list[tuple[Phrase, ...]] = []
    for i in ledger.items("/ranks/orders"):
        at, unit = f"/ranks/orders/{i}", str(ledger.at(f"/ranks/measures/{i}/unit"))
        parts: list[Any] = []
        for j in ledger.items(f"{at}/arms"):
            parts += [" · "] if parts else []
            parts += [ledger.word(f"{at}/arms/{j}/name"), " "]
            parts.append(ledger.quote(_VALUES.get(unit, "loss"), f"{at}/arms/{j}/value"))
        name = (ledger.quote("words", f"{at}/by"),)
        rows.append((name, tuple(parts) or (MISSING,), (_UNITS.get(unit, ""),)))
    return Table(columns=("Measure", "Arms, best first", "Unit"), rows=tuple(rows), keys=(None,) * len(rows))


def opposed(ledger: QuotedStudy) -> Table:
    """Every pair of arms that another measure ranks the other way."""
    rows: list[tuple[Phrase, ...]] = []
    units = {m.get("name"): m.get("unit") for m in ledger.at("/ranks/measures") or []}
    for i in ledger.items("/ranks/opposed"):
        at = f"/ranks/opposed/{i}"
        form = _DIFFERENCES.get(str(units.get(ledger.at(f"{at}/by"))), "signed")
        established = ledger.at(f"{at}/established")
        p = ledger.quote("probability", f"{at}/p_holm")
        rows.append(
            (
                (ledger.word(f"{at}/first"), " − ", ledger.word(f"{at}/second")),
                (ledger.quote("signed", f"{at}/loss/difference"),),
                (ledger.quote("words", f"{at}/by"),),
                (ledger.quote(form, f"{at}/other/difference"),),
                (p,),
                ("established" if established else "no test" if p.value is None else "not established",),
            )
        )
    columns = ("Arms", f"By the {_loss(ledger)}", "Measure", "By that measure", "p after Holm", "Reversal")
    return Table(columns=columns, rows=tuple(rows), keys=(None,) * len(rows))


def counted(ledger: QuotedStudy) -> Phrase:
    """How many pairs were held against how many measures, and how many disagree."""
    compared, rows = (
        ledger.quote("count", "/ranks/compared"),
        ledger.quote("count", "/ranks/opposed", how="number of"),
    )
    parts: list[Any] = [f"Comparisons of two arms by another measure than the {_loss(ledger)}: ", compared]
    return (*parts, "; ranked the other way round: ", rows, ".")


def _loss(ledger: QuotedStudy) -> str:
    return "mean loss" if ledger.per in ("nats per row", "nats per pair") else "token mean"


def has(ledger: QuotedStudy, what: str) -> bool:
    """Whether any arm has a ``metric`` or a ``forgetting``."""
    return any(ledger.at(f"/arms/{i}/{what}") for i in ledger.items("/arms"))


def forgetting(ledger: QuotedStudy, i: int) -> Phrase:
    """Change of the loss on rows that the arm was not trained for, with its interval, then before and after."""
    at = f"/arms/{i}/forgetting"
    if not ledger.at(at):
        return (MISSING,)
    low, high = ledger.quote("signed", f"{at}/ci/0"), ledger.quote("signed", f"{at}/ci/1")
    before, after = ledger.quote("loss", f"{at}/before"), ledger.quote("loss", f"{at}/after")
    change = ledger.quote("signed", f"{at}/change")
    if low.value is None or high.value is None:
        return (change, "\n", before, " → ", after)
    return (change, "\n", "[", low, ", ", high, "], ", before, " → ", after)


def metric(ledger: QuotedStudy, i: int) -> Phrase:
    """The task metrics of an arm, each with its interval, the one that was asked for first."""
    parts: list[Any] = []
    # A study of before there was more than one has only the first.
    several = [f"/arms/{i}/metrics/{j}" for j in ledger.items(f"/arms/{i}/metrics")]
    for at in several or [f"/arms/{i}/metric"]:
        if not ledger.at(at):
            continue
        form = _VALUES.get(str(ledger.at(f"{at}/unit") or "share"), "loss")
        value = ledger.quote(form, f"{at}/value")
        low, high = ledger.quote(form, f"{at}/ci/0"), ledger.quote(form, f"{at}/ci/1")
        name = ledger.quote("words", f"{at}/name")
        parts += ["\n"] if parts else []
        parts += [value, " " if parts else "\n", name]
        if low.value is not None and high.value is not None:
            parts += [" [", low, ", ", high, "]"]
    return tuple(parts) or (MISSING,)


def lead(ledger: QuotedStudy) -> Phrase:
    """What the column of forgetting is about; () where the study has none."""
    if not has(ledger, "forgetting"):
        return ()
    rows, source = (
        ledger.quote("count", "/data/forgetting/rows"),
        ledger.quote("name", "/data/forgetting/source"),
    )
    return (
        *(f" Forgetting is the change of the {_loss(ledger)} on ", rows, " rows of ", source),
        ", which no arm was trained for: above zero the base knew them better.",
    )
