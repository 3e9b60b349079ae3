"""The rows of every table of the report: arms, tuning, data, settings. No drawing, only quotes.

A table is a header and rows of phrases, so that the page and the terminal show the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loratlas.report.quotes import MISSING, Phrase, Quote, QuotedStudy, clean, pointer
from loratlas.report.sentences import findings

_SHORT = 48  # characters of a solved placement that stand well in a table; the map shows any


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A header and its rows.

    Args:
        columns: one heading for each column.
        rows: phrases, as many in each row as there are columns; what follows a "\\n" is of lesser weight.
        keys: for each row the index of the arm it is about, None where it is about none.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Phrase, ...], ...]
    keys: tuple[int | None, ...]


def arms(ledger: QuotedStudy) -> Table:
    """What every arm is, what it cost and what it reached."""
    indices = tuple(ledger.items("/arms"))
    perplexity = () if ledger.at("/task/name") == "classification" else ("Perplexity",)
    return Table(
        columns=(
            "Arm",
            "Placement",
            "Learning rate",
            f"Loss, {ledger.per}",
            *perplexity,
            "Trainable",
            "Step time",
            "Peak memory",
            "Match",
        ),
        rows=tuple(_arm(ledger, i, perplexity=bool(perplexity)) for i in indices),
        keys=indices,
    )


def _arm(ledger: QuotedStudy, i: int, *, perplexity: bool) -> tuple[Phrase, ...]:
    at = f"/arms/{i}"
    reference = ledger.at(f"{at}/name") == ledger.at("/spec/reference")
    name: Phrase = (
        (ledger.word(f"{at}/name"), "\n", "reference") if reference else (ledger.word(f"{at}/name"),)
    )
    trainable: Phrase = (ledger.quote("count", f"{at}/trainable"),)
    if ledger.number("/base/parameters"):
        share = ledger.quote("percent", f"{at}/trainable", "/base/parameters", how="share")
        trainable = (*trainable, "\n", share, " of base")
    if ledger.number("/head"):
        trainable = (*trainable, "\n", "+ ", ledger.quote("count", "/head"), " of the head")
    time: Phrase = (ledger.quote("times", f"{at}/step_time_ratio"),)
    if ledger.number(f"{at}/step_seconds") is not None:
        time = (*time, "\n", ledger.quote("seconds", f"{at}/step_seconds"))
    return (
        name,
        placement(ledger, i),
        (ledger.quote("rate", f"{at}/lr"), *(("\n", "edge") if ledger.at(f"{at}/lr_at_edge") else ())),
        loss(ledger, i, between="\n"),
        *([(ledger.quote("perplexity", f"{at}/nll", how="exp"),)] if perplexity else []),
        trainable,
        time,
        (ledger.quote("bytes", f"{at}/peak_bytes"),),
        match(ledger, i),
    )


def placement(ledger: QuotedStudy, i: int) -> Phrase:
    """The placement as it was written and, where that is short and says more, with its ranks solved."""
    written, solved = ledger.at(f"/arms/{i}/placement"), ledger.at(f"/arms/{i}/plan/text")
    text: Phrase = (ledger.word(f"/arms/{i}/placement"),)
    if isinstance(solved, str) and solved != written and len(solved) <= _SHORT:
        return (*text, "\n", ledger.word(f"/arms/{i}/plan/text"))
    return text


def loss(ledger: QuotedStudy, i: int, *, between: str = " ") -> Phrase:
    """Loss of an arm with its interval, ``3.512 [3.498, 3.526]``."""
    at = f"/arms/{i}"
    value: Phrase = (ledger.quote("loss", f"{at}/nll"),)
    if ledger.number(f"{at}/ci/0") is None or ledger.number(f"{at}/ci/1") is None:
        return value
    low, high = ledger.quote("loss", f"{at}/ci/0"), ledger.quote("loss", f"{at}/ci/1")
    return (*value, between, "[", low, ", ", high, "]")


def match(ledger: QuotedStudy, i: int) -> Phrase:
    """How near an arm came to spending what the reference spends."""
    at = f"/arms/{i}/match"
    if not ledger.at(at):
        return (MISSING,)
    form = "bytes" if ledger.at(f"{at}/quantity") == "memory" else "count"
    unit = " operations" if ledger.at(f"{at}/quantity") == "time" else ""
    got, wanted = ledger.quote(form, f"{at}/got"), ledger.quote(form, f"{at}/wanted")
    share = ledger.quote("percent", f"{at}/got", f"{at}/wanted", how="share")
    given = " as given" if ledger.at(f"{at}/solved") is False else ""
    return (share, given, "\n", got, " of ", wanted, unit)


def tuning(ledger: QuotedStudy) -> Table:
    """Every tuning run: arm, learning rate, seed, loss. Equal rows for all arms are equal tuning."""
    rows: list[tuple[Phrase, ...]] = []
    keys: list[int | None] = []
    for i in ledger.items("/arms"):
        for j in ledger.items(f"/arms/{i}/tuning"):
            at = f"/arms/{i}/tuning/{j}"
            result: Phrase = (
                ("diverged",) if ledger.at(f"{at}/diverged") else (ledger.quote("loss", f"{at}/nll"),)
            )
            name, rate = (ledger.word(f"/arms/{i}/name"),), (ledger.quote("rate", f"{at}/lr"),)
            rows.append((name, rate, (ledger.word(f"{at}/seed"),), result))
            keys.append(i)
    return Table(
        columns=("Arm", "Learning rate", "Seed", "Loss on the tuning rows"),
        rows=tuple(rows),
        keys=tuple(keys),
    )


def runs(ledger: QuotedStudy) -> Table:
    """Every evaluation run: arm, seed, losses, cost and the digest that names its record."""
    rows: list[tuple[Phrase, ...]] = []
    keys: list[int | None] = []
    for i in ledger.items("/arms"):
        for j in ledger.items(f"/arms/{i}/runs"):
            at = f"/arms/{i}/runs/{j}"
            rows.append(
                (
                    (ledger.word(f"/arms/{i}/name"),),
                    (ledger.word(f"{at}/seed"),),
                    (ledger.quote("loss", f"{at}/nll"),),
                    (ledger.quote("loss", f"{at}/train_nll"),),
                    (ledger.quote("seconds", f"{at}/step_seconds"),),
                    (ledger.quote("bytes", f"{at}/peak_bytes"),),
                    (ledger.word(f"{at}/digest"),),
                )
            )
            keys.append(i)
    columns = ("Arm", "Seed", "Loss", "Training loss", "Step", "Peak memory", "Run")
    return Table(columns=columns, rows=tuple(rows), keys=tuple(keys))


def data(ledger: QuotedStudy) -> Table:
    """The rows that were trained on, tuned on and judged on."""
    rows: list[tuple[Phrase, ...]] = []
    for part in ("train", "tuning", "evaluation", "forgetting"):
        at = f"/data/{part}"
        if not ledger.at(at):
            continue
        counts = tuple(
            (ledger.quote("count", f"{at}/{key}"),) for key in ("rows", "answer_tokens", "cut", "dropped")
        )
        source = (ledger.quote("name", f"{at}/source"),)
        rows.append(((part.capitalize(),), source, *counts, (ledger.word(f"{at}/digest"),)))
    columns = ("Part", "Source", "Rows", "Answer tokens", "Cut", "Dropped", "Digest")
    return Table(columns=columns, rows=tuple(rows), keys=(None,) * len(rows))


def settings(ledger: QuotedStudy) -> tuple[tuple[str, Phrase], ...]:
    """What names this study exactly: digests, revision, versions, machine, seeds. Label and value each."""
    pairs: list[tuple[str, Phrase]] = [
        ("Base", (ledger.word("/base/model"),)),
        ("Architecture", (ledger.word("/base/model_type"),)),
        ("Parameters of the base", (ledger.quote("count", "/base/parameters"),)),
        ("Digest of the config", (ledger.word("/base/config_digest"),)),
        ("Digest of the spec", (ledger.word("/spec_digest"),)),
        ("Master seed", (ledger.word("/spec/seed"),)),
        ("Evaluation seeds", _seeds(ledger)),
        ("Loss counted on", (ledger.word("/data/loss"),)),
        ("Task", (ledger.word("/task/name"),)),
        ("Labels", _labels(ledger)),
        ("Template", (ledger.word("/data/template"),)),
        ("Packing", (ledger.quote("yes", "/data/packing"),)),
        ("Revision", (ledger.word("/revision"),)),
    ]
    for group in ("versions", "machine"):
        values = ledger.at(f"/{group}")
        for key in values if isinstance(values, dict) else ():
            pairs.append((clean(str(key)).replace("_", " "), _any(ledger, pointer(group, key))))
    return tuple(
        (label, phrase) for label, phrase in pairs if phrase and phrase != (MISSING,) and _known(phrase)
    )


def _known(phrase: Phrase) -> bool:
    return any(not isinstance(part, Quote) or part.text != MISSING for part in phrase)


def _labels(ledger: QuotedStudy) -> Phrase:
    """The classes of a classification, in their order."""
    parts: list[Any] = []
    for index in ledger.at("/task/id2label") or ():
        parts += [", "] if parts else []
        parts.append(ledger.word(pointer("task", "id2label", index)))
    return tuple(parts)


def _any(ledger: QuotedStudy, path: str) -> Phrase:
    form = "bytes" if path.endswith("_bytes") else "yes"
    return (ledger.quote(form, path),)


def _seeds(ledger: QuotedStudy) -> Phrase:
    """Evaluation seeds of the first arm that has runs; all arms share them."""
    for i in ledger.items("/arms"):
        parts: list[Any] = []
        for j in ledger.items(f"/arms/{i}/runs"):
            parts += [", "] if parts else []
            parts.append(ledger.word(f"/arms/{i}/runs/{j}/seed"))
        if parts:
            return tuple(parts)
    return ()


def summary(ledger: QuotedStudy) -> Table:
    """One row for each arm, short enough for a terminal of 80 columns.

    Columns: arm, placement, learning rate, loss with its interval, difference from the reference, verdict.
    """
    by_arm = {fact.arm: (j, fact) for j, fact in enumerate(findings(ledger))}
    rows: list[tuple[Phrase, ...]] = []
    indices = tuple(ledger.items("/arms"))
    for i in indices:
        at = f"/arms/{i}"
        difference: Phrase = (MISSING,)
        verdict: Phrase = (
            "reference" if ledger.at(f"{at}/name") == ledger.at("/spec/reference") else MISSING,
        )
        if i in by_arm:
            j, fact = by_arm[i]
            difference = (ledger.quote("signed", f"/findings/{j}/difference"),)
            verdict = (fact.verdict,)
        name, placement = (ledger.word(f"{at}/name"),), (ledger.word(f"{at}/placement"),)
        rate = (ledger.quote("rate", f"{at}/lr"),)
        rows.append((name, placement, rate, loss(ledger, i), difference, verdict))
    reference = clean(str(ledger.at("/spec/reference") or "reference"))
    columns = ("Arm", "Placement", "LR", "Loss [interval]", f"vs {reference}", "Verdict")
    return Table(columns=columns, rows=tuple(rows), keys=indices)
