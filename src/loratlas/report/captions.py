"""Text alternatives of the figures: what a reader who cannot see them needs to know, all of it quoted."""

from __future__ import annotations

from typing import Any

from loratlas.report.quotes import Phrase, QuotedStudy

COSTS = {
    "params": ("trainable parameters", "trainable", "count"),
    "time": ("step time", "step_seconds", "seconds"),
    "memory": ("peak memory", "peak_bytes", "bytes"),
}


def pareto(ledger: QuotedStudy, axis: str) -> Phrase:
    """Every arm's loss and cost, then who stands on the frontier."""
    word, field, form = COSTS[axis]
    parts: list[Any] = [f"Loss against {word}. "]
    for i in ledger.items("/arms"):
        at = f"/arms/{i}"
        parts += [ledger.word(f"{at}/name"), ": loss ", ledger.quote("loss", f"{at}/nll")]
        parts += [" at ", ledger.quote(form, f"{at}/{field}"), ". "]
    front = ledger.items(f"/pareto/{axis}")
    if front:
        parts.append("On the frontier: ")
        for j in front:
            parts += [", "] if j else []
            parts.append(ledger.word(f"/pareto/{axis}/{j}"))
        parts.append(".")
    return tuple(parts)


def curves(ledger: QuotedStudy) -> Phrase:
    """Where every arm's training loss begins and ends."""
    parts: list[Any] = ["Training loss over steps. "]
    for i in ledger.items("/arms"):
        at = f"/arms/{i}/curve/mean"
        last = len(ledger.items(at)) - 1
        if last >= 0:
            parts += [ledger.word(f"/arms/{i}/name"), ": from ", ledger.quote("loss", f"{at}/0"), " to "]
            parts += [ledger.quote("loss", f"{at}/{last}"), ". "]
    return tuple(parts)


def tuning(ledger: QuotedStudy) -> Phrase:
    """The learning rate that was chosen for every arm."""
    parts: list[Any] = ["Loss on the tuning rows over the learning rate. "]
    for i in ledger.items("/arms"):
        parts += [
            "Chosen for ",
            ledger.word(f"/arms/{i}/name"),
            ": ",
            ledger.quote("rate", f"/arms/{i}/lr"),
            ". ",
        ]
    return tuple(parts)


def model_map(ledger: QuotedStudy, i: int) -> Phrase:
    """The placement of an arm and what it trains."""
    at = f"/arms/{i}"
    name, placement = ledger.word(f"{at}/name"), ledger.word(f"{at}/placement")
    trainable = ledger.quote("count", f"{at}/trainable")
    return ("Map of ", name, ": placement ", placement, ", ", trainable, " trainable parameters.")


def forest(ledger: QuotedStudy, i: int) -> Phrase:
    """The interval of a finding, as it is drawn."""
    at = f"/findings/{i}"
    low, high = ledger.quote("signed", f"{at}/ci/0"), ledger.quote("signed", f"{at}/ci/1")
    value, margin = ledger.quote("signed", f"{at}/difference"), ledger.quote("rate", "/spec/delta")
    return ("Difference ", value, ", interval ", low, " to ", high, ", margin ±", margin, f" {ledger.per}")
