"""What a study found, in words. No drawing here, and no number that is not quoted from the study.

Every function takes a :class:`~loratlas.report.quotes.Ledger` and returns phrases, so that the page, the
terminal and the tests read the same facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

from loratlas.errors import RequestError
from loratlas.report.quotes import Phrase, Quote, QuotedStudy, plain
from loratlas.study.results.findings import HEADLINES, HOLDS_ZERO

SCHEMA = "loratlas.study"
VERSION = 1

# Below this many parameters the page says that the base is small. Findings on adapters change with the size
# of the base; where exactly nobody knows, so the bound errs on the side of saying it.
SMALL = 1_000_000_000

# Notes of the study that the page says elsewhere, with its own numbers: its reach and the banner.
_SAID = ("The findings are about this base", "This is a demonstration")

VERDICTS = ("better", "equivalent", "worse", "undetermined")


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Numbers of one comparison, nats per token; None where the study has none.

    Args:
        low, value, high: difference from the reference with its interval; below 0 is better.
        delta: margin of equivalence.
        detectable: difference that would have been found with 80 % power.
    """

    low: float | None
    value: float | None
    high: float | None
    delta: float | None
    detectable: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingFact:
    """One finding: what was said, how sure, and the numbers behind it.

    Args:
        arm: index of the arm in the study's list of arms, None where the study lists no such arm.
        name: the arm's name.
        verdict: one of :data:`VERDICTS`.
        headline: the finding in one sentence.
        numbers: difference, interval, p value, what could have been found: label and value each.
        reason: why the verdict is what it is.
        interval: the numbers to draw.
    """

    arm: int | None
    name: str
    verdict: str
    headline: Phrase
    numbers: tuple[tuple[Phrase, Phrase], ...]
    reason: Phrase
    interval: Interval

    @property
    def has_cause(self) -> bool:
        """Whether it is undetermined for another reason than its interval: a rule was not met, or runs diverged."""
        return self.verdict == "undetermined" and bool(self.reason) and HOLDS_ZERO not in plain(self.reason)


def read(study: Any) -> QuotedStudy:
    """A study that can be quoted from.

    Raises:
        RequestError: the object is no study, or one of another version.

    >>> read({"schema": "loratlas.map", "version": 1})
    Traceback (most recent call last):
    ...
    loratlas.errors.RequestError: Given: schema 'loratlas.map', version 1. Found: a report is made from ...
    """
    schema, version = (study.get("schema"), study.get("version")) if isinstance(study, dict) else (None, None)
    if schema != SCHEMA or version != VERSION:
        raise RequestError(
            given=f"schema {schema!r}, version {version!r}",
            found=f"a report is made from schema {SCHEMA!r}, version {VERSION}",
            instead="the findings.json of a study, or what `loratlas study SPEC --json` prints",
        )
    return QuotedStudy(study)


def title(ledger: QuotedStudy) -> Phrase:
    """The question of the study."""
    return (
        "Where should LoRA go in ",
        ledger.quote("name", "/base/model"),
        " for ",
        ledger.quote("name", "/data/train/source"),
        "?",
    )


def answer(ledger: QuotedStudy) -> Phrase:
    """The whole study in one sentence: every arm with its verdict, or how many are still open."""
    statements = findings(ledger)
    reference = ledger.word("/findings/0/versus") if statements else ledger.word("/spec/reference")
    opening = "" if ledger.at("/complete") else "So far, "
    if not statements:
        return ("Nothing has been compared with ", reference, " yet.")
    clauses: list[Phrase] = []
    for verdict in VERDICTS:
        members = sorted(
            (i for i, fact in enumerate(statements) if fact.verdict == verdict),
            key=lambda i: statements[i].interval.value or 0.0,
        )
        if verdict in ("better", "worse"):
            for i in members:
                clauses.append(_better_or_worse(ledger, i, verdict, reference, first=not clauses))
        elif members:
            clauses += _alike(ledger, statements, members, verdict, reference, sentence=not opening)
    return (opening, *_joined(clauses), ".")


def _better_or_worse(ledger: QuotedStudy, i: int, verdict: str, reference: Quote, *, first: bool) -> Phrase:
    return filled(
        HEADLINES[verdict] if first else HEADLINES[verdict].removesuffix(" {per}"),
        arm=ledger.word(f"/findings/{i}/arm"),
        versus=reference,
        size=ledger.quote("loss", f"/findings/{i}/difference", how="abs"),
        per=ledger.per,
    )


def _alike(
    ledger: QuotedStudy,
    same: Sequence[FindingFact],
    members: Sequence[int],
    verdict: str,
    reference: Quote,
    *,
    sentence: bool,
) -> list[Phrase]:
    """Arms of one verdict in one clause; undetermined ones by their reason, unless all have their interval alone."""
    verb = {False: " are", True: " is"}

    def names(own: Sequence[int]) -> Phrase:
        return _listed(tuple(ledger.word(f"/findings/{i}/arm") for i in own))

    if verdict == "equivalent":
        margin = ledger.quote("rate", "/spec/delta")
        shown = (*names(members), verb[len(members) == 1], " equivalent to ", reference, " within ±", margin)
        return [shown]
    if len(members) == len(same) and not any(one.has_cause for one in same):
        return [
            (
                "This study" if sentence else "this study",
                " cannot distinguish ",
                *names(members),
                " from ",
                reference,
            )
        ]
    groups: dict[str, list[int]] = {}
    for i in members:
        groups.setdefault(str(ledger.at(f"/findings/{i}/reason") or ""), []).append(i)
    return [
        (*names(own), verb[len(own) == 1], " undetermined")
        + ((", because ", ledger.word(f"/findings/{own[0]}/reason")) if reason else ())
        for reason, own in groups.items()
    ]


def conditions(ledger: QuotedStudy) -> Phrase:
    """What the answer holds under, in a line: size of the base, training, spending, seeds and examples."""
    parts: list[Any] = [ledger.quote("millions", "/base/parameters"), " parameters · "]
    parts += [ledger.quote("count", "/spec/steps"), " steps of ", ledger.quote("count", "/spec/batch_size")]
    parts.append(" rows · ")
    parts.append(_MATCHED.get(str(ledger.at("/spec/match")), "budgets not matched"))
    if any(ledger.at(f"/arms/{i}/match/solved") is False for i in ledger.items("/arms")):
        parts.append(" but for arms that name their ranks")
    if ledger.number("/spec/evaluation/seeds") is not None:
        seeds, rows = (ledger.quote("count", f"/spec/evaluation/{key}") for key in ("seeds", "rows"))
        parts += [" · ", seeds, " fresh seeds × ", rows, " rows"]
    return tuple(parts)


_MATCHED = {
    "params": "trainable parameters matched",
    "time": "step time matched",
    "memory": "peak memory matched",
}


def filled(template: str, **fields: str | Quote) -> Phrase:
    """A sentence with named fields, as a phrase.

    >>> filled("{arm} is better.", arm="all")
    ('all', ' is better.')
    """
    parts: list[str | Quote] = []
    for words, field, _, _ in Formatter().parse(template):
        parts += [words] if words else []
        parts += [fields[field]] if field else []
    return tuple(parts)


def _listed(names: Sequence[Any]) -> Phrase:
    """``a``, ``a and b``, ``a, b and c``."""
    parts: list[Any] = []
    for i, name in enumerate(names):
        if i:
            parts.append(" and " if i == len(names) - 1 else ", ")
        parts.append(name)
    return tuple(parts)


def _joined(clauses: Sequence[Phrase]) -> Phrase:
    parts: list[Any] = []
    for i, clause in enumerate(clauses):
        if i:
            parts.append("; " if len(clauses) > 2 or i < len(clauses) - 1 else ", and ")
        parts.extend(clause)
    return tuple(parts)


def findings(ledger: QuotedStudy) -> tuple[FindingFact, ...]:
    """Every finding of the study, in the study's order."""
    names = [arm.get("name") for arm in ledger.at("/arms") or []]
    return tuple(_finding(ledger, i, names) for i in ledger.items("/findings"))


def _finding(ledger: QuotedStudy, i: int, names: list[Any]) -> FindingFact:
    at = f"/findings/{i}"
    name = ledger.at(f"{at}/arm")
    verdict = ledger.at(f"{at}/verdict")
    verdict = verdict if verdict in VERDICTS else "undetermined"
    arm, versus = ledger.word(f"{at}/arm"), ledger.word(f"{at}/versus")
    headline = filled(
        HEADLINES[verdict] + ".",
        arm=arm,
        versus=versus,
        size=ledger.quote("loss", f"{at}/difference", how="abs"),
        delta=ledger.quote("rate", "/spec/delta"),
        per=ledger.per,
    )
    return FindingFact(
        arm=names.index(name) if name in names else None,
        name=str(name),
        verdict=verdict,
        headline=headline,
        numbers=_numbers(ledger, at),
        reason=(ledger.word(f"{at}/reason"),) if ledger.at(f"{at}/reason") else (),
        interval=Interval(
            low=ledger.number(f"{at}/ci/0"),
            value=ledger.number(f"{at}/difference"),
            high=ledger.number(f"{at}/ci/1"),
            delta=ledger.number("/spec/delta"),
            detectable=ledger.number(f"{at}/detectable"),
        ),
    )


def _numbers(ledger: QuotedStudy, at: str) -> tuple[tuple[Phrase, Phrase], ...]:
    """Difference, interval, p, steps saved, what could have been found; those that the study has."""
    low, high = ledger.quote("signed", f"{at}/ci/0"), ledger.quote("signed", f"{at}/ci/1")
    level, p = ledger.quote("percent", f"{at}/level"), ledger.quote("probability", f"{at}/p_holm")
    detectable = ledger.quote("loss", f"{at}/detectable")
    seeds, examples = ledger.quote("count", f"{at}/seeds"), ledger.quote("count", f"{at}/examples")
    saved = ledger.quote("steps", f"{at}/steps_saved/value")
    ends = [ledger.quote("steps", f"{at}/steps_saved/{end}") for end in ("low", "high")]
    known = all(end.value is not None for end in ends)
    between: Phrase = (" (", ends[0], " to ", ends[1], ")") if known else ()
    equal = ledger.quote("signed", f"{at}/equal_compute/difference")
    heading: Phrase = ("Interval",) if level.value is None else (level, " interval")
    pairs: list[tuple[Phrase, Phrase, Any]] = [
        (("Difference",), (ledger.quote("signed", f"{at}/difference"),), ledger.number(f"{at}/difference")),
        (heading, (low, " to ", high), low.value if high.value is not None else None),
        (("Adjusted p",), (p,), p.value),
        (("Steps saved",), (saved, *between), saved.value),
        (("At equal compute",), (equal,), equal.value),
        (("Detectable",), (detectable,), detectable.value),
        (("Seeds × examples",), (seeds, " × ", examples), seeds.value or None),
    ]
    return tuple((label, phrase) for label, phrase, known in pairs if known is not None)


def banners(ledger: QuotedStudy) -> tuple[tuple[str, Phrase], ...]:
    """Warnings that stand above everything: a kind and a sentence each."""
    shown: list[tuple[str, Phrase]] = []
    if not ledger.at("/complete"):
        parts: list[Any] = ["This study is not complete"]
        if ledger.number("/runs/planned"):
            finished = ledger.quote("count", "/runs/finished")
            parts += [": ", finished, " of ", ledger.quote("count", "/runs/planned"), " runs are finished"]
        parts.append(". Numbers on this page will change; run the same command again to continue.")
        shown.append(("incomplete", tuple(parts)))
    if ledger.at("/demonstration"):
        sentence: Phrase = (
            "A demonstration: fewer learning rates, tuning seeds and steps than a study needs, so that it"
            " ends within minutes. It shows what loratlas does; do not choose a placement by it.",
        )
        shown.append(("demonstration", sentence))
    if ledger.at("/superseded"):
        shown.append(("superseded", ("Superseded: ", ledger.word("/superseded"), ".")))
    return tuple(shown)


def reach(ledger: QuotedStudy) -> tuple[Phrase, ...]:
    """What the findings are about, what they are not, and what the study itself notes."""
    base, size = ledger.quote("name", "/base/model"), ledger.quote("millions", "/base/parameters")
    task, steps = ledger.quote("name", "/data/train/source"), ledger.quote("count", "/spec/steps")
    rows = ledger.quote("count", "/spec/batch_size")
    phrases: list[Phrase] = [
        (
            *("The findings hold for this base (", base, ", ", size, " parameters), this task (", task),
            *("), and this budget (", steps, " steps of ", rows, " rows). They are about new seeds and new"),
            " examples of the same task, not about other tasks, other bases or longer training.",
        ),
    ]
    parameters = ledger.number("/base/parameters")
    if parameters is not None and parameters < SMALL:
        phrases.append(
            (
                *(
                    "A base of ",
                    ledger.quote("count", "/base/parameters"),
                    " parameters is small. What helps",
                ),
                " there may not help in a large one.",
            )
        )
    phrases += _arm_limits(ledger)
    for i in ledger.items("/notes"):
        if not str(ledger.at(f"/notes/{i}")).startswith(_SAID):
            phrases.append((ledger.word(f"/notes/{i}"),))
    return tuple(phrases)


def _arm_limits(ledger: QuotedStudy) -> list[Phrase]:
    """Which arms were not tuned well enough, or diverged: a sentence each, none where all is well."""
    at_edge = [i for i in ledger.items("/arms") if ledger.at(f"/arms/{i}/lr_at_edge")]
    diverged = [i for i in ledger.items("/arms") if ledger.number(f"/arms/{i}/diverged")]
    limits: list[Phrase] = []
    if at_edge:
        named = [
            (ledger.word(f"/arms/{i}/name"), " (", ledger.quote("rate", f"/arms/{i}/lr"), ")")
            for i in at_edge
        ]
        limits.append(("The best learning rate lies at the edge of those tried: ", *_flat(named), "."))
    if diverged:
        named = [
            (ledger.word(f"/arms/{i}/name"), " (", ledger.quote("count", f"/arms/{i}/diverged"), ")")
            for i in diverged
        ]
        limits.append(("Evaluation runs that diverged: ", *_flat(named), "."))
    return limits


def _flat(phrases: Sequence[Phrase]) -> Phrase:
    """Phrases with commas between them."""
    parts: list[Any] = []
    for phrase in phrases:
        parts += [", ", *phrase] if parts else phrase
    return tuple(parts)


def gap(ledger: QuotedStudy) -> Phrase:
    """The loss of the bare base, which every arm starts from; () where the study has none."""
    if ledger.number("/base_nll") is None:
        return ()
    loss = ledger.quote("loss", "/base_nll")
    if ledger.at("/task/name") == "classification":
        return ("The base with its head as it was drawn has a loss of ", loss, ".")
    perplexity = ledger.quote("perplexity", "/base_nll", how="exp")
    return ("Without any adapter the base has a loss of ", loss, " (perplexity ", perplexity, ").")
