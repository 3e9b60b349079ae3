"""Which placement to use: a row for each kind of model and data that was studied, decided by the findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tools.founding.pictures import case_of, fresh_points

from loratlas.claims.comparisons import Contrast, contrasts, middle, tally
from loratlas.claims.evidence_files import ClaimEvidence
from loratlas.claims.study_extract import base_name

LITTLE = 0.01
"""Nats per token that are the same for practical purposes: the δ of the studies."""

BEGIN = "<!-- which placement: written by tools/claims.py -->"
END = "<!-- end of which placement -->"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One row of the table.

    Args:
        situation: model and data.
        placement: what to write.
        because: the finding that it rests on.
    """

    situation: str
    placement: str
    because: str


def advice(evidence: ClaimEvidence) -> list[Advice]:
    """The rows, as the findings decide them."""
    listed = [one for one in contrasts(evidence.standing) if one.equal]
    rows = [
        row
        for name, kind in (
            ("a decoder, answers to instructions or questions", "decoder"),
            ("an encoder-decoder, text from structured input", "encoder-decoder"),
            ("an encoder, classification", "encoder"),
        )
        if (row := _by_kind(name, [one for one in listed if _kind(one.study) == kind])) is not None
    ]
    return [*rows, *_long_runs(evidence), *_decided_inside(evidence)]


def table(rows: Sequence[Advice]) -> str:
    """The rows as Markdown."""
    lines = ["| you have | write | because |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {row.situation} | {row.placement} | {row.because} |" for row in rows)])


def replaced(page: str, text: str) -> str:
    """A page with this text between the two marks of the table.

    >>> replaced(f"a\\n{BEGIN}\\nold\\n{END}\\nb", "new").splitlines()[2]
    'new'
    """
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        raise ValueError("a page without the marks of the table")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def _kind(study: Mapping[str, Any]) -> str:
    if study["kind"] == "classification":
        return "encoder"
    return "encoder-decoder" if study["model_type"] in ("t5", "bart", "mt5") else "decoder"


def _by_kind(situation: str, found: Sequence[Contrast]) -> Advice | None:
    """All layers, unless feed-forward alone is better in most studies and worse in none; never attention alone where
    that is worse."""
    halves = {half: [one for one in found if one.half == half] for half in ("attention", "feedforward")}
    if not all(halves.values()):
        return None
    counts = {half: tally(listed) for half, listed in halves.items()}
    forward = counts["feedforward"]
    number = len(halves["feedforward"])
    best = "feedforward" if 2 * forward["better"] > number and not forward["worse"] else "all"
    said = [
        _found(word, halves[half])
        for half, word in (("attention", "attention"), ("feedforward", "feed-forward"))
    ]
    return Advice(situation=situation, placement=f"`{best}`", because="; ".join(said))


def _found(half: str, listed: Sequence[Contrast]) -> str:
    """What studies found of one half, in a clause; where none decided, what they could have seen."""
    counts, number = tally(listed), f"{len(listed)} {'study' if len(listed) == 1 else 'studies'}"
    words = {"better": "better", "worse": "worse", "equivalent": "the same within the margin"}
    decided = [f"{said} in {counts[verdict]}" for verdict, said in words.items() if counts[verdict]]
    median = _nats(middle(one.finding["difference"] for one in listed))
    at_equal = f"{half} alone, at equal parameters,"
    if decided:
        return f"{at_equal} is {' and '.join(decided)} of {number} (median {median})"
    seen = max(one.finding["detectable"] or 0.0 for one in listed)
    return (
        f"{at_equal} shows no difference from `all` in {number} ({median}; {seen:.3f} would have been seen)"
    )


def _long_runs(evidence: ClaimEvidence) -> list[Advice]:
    """What is left of feed-forward's advantage as runs on real bases grow longer: a row for where it ends, and one for
    where it stays.
    """
    level: list[str] = []
    ahead: list[str] = []
    since = 0
    for picture in (evidence.placement or {}).get("real_base", ()):
        points = fresh_points(picture)
        if len(points) < 2:
            continue
        begun = level_from(points)
        (level if begun else ahead).append(_first_and_last(picture, points))
        since = max(since, begun or 0)
    rows = []
    if level:
        rows.append(
            Advice(
                situation=f"a pretrained decoder and time for {since} steps or more",
                placement="`all`; more steps and a better rate matter more",
                because="feed-forward − all: " + "; ".join(level),
            )
        )
    if ahead:
        rows.append(
            Advice(
                situation="a pretrained decoder, on tasks such as these",
                placement="`feedforward`",
                because="feed-forward − all: " + "; ".join(ahead),
            )
        )
    return rows


def level_from(points: Sequence[Mapping[str, Any]]) -> int | None:
    """Steps from which on no interval lies below 0; None where the longest run's still does.

    >>> ahead, level = {"minus_all": {"high": -0.01}}, {"minus_all": {"high": 0.01}}
    >>> level_from([ahead | {"steps": 25}, level | {"steps": 50}, level | {"steps": 100}])
    50
    """
    since = None
    for point in points:
        if point["minus_all"]["high"] < 0:
            since = None
        elif since is None:
            since = int(point["steps"])
    return since


def _first_and_last(picture: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> str:
    first, last = points[0], points[-1]
    return (
        f"{case_of(picture)} on {base_name(picture['base'])}, {_estimate(first['minus_all'])} after "
        f"{first['steps']} steps and {_estimate(last['minus_all'])} after {last['steps']} "
        f"({last['seeds']} {'seed' if last['seeds'] == 1 else 'seeds'})"
    )


def _decided_inside(evidence: ClaimEvidence) -> list[Advice]:
    """`auto` where it is better in half of the cases at least and worse in none."""
    pooled = (evidence.auto or {}).get("pooled_unseen")
    if pooled is None:
        return []
    pays = 2 * pooled["better"] >= pooled["cases"] and not pooled["worse"]
    moves = evidence.moves
    return [
        Advice(
            situation="no idea, and rows of your own",
            placement="`auto`, or any placement with `--init auto`"
            if pays
            else "`all`, and let `--lr auto` choose the rate",
            because=f"adapters that begin along their inputs and move in the run's own first steps are better than "
            f"`all` in {pooled['better']} and worse in {pooled['worse']} of {pooled['cases']} held-out cases of small "
            "bases"
            + (f", the moves among that in {moves['better']} and {moves['worse']}" if moves else "")
            + "; two pretrained ones of 135 and 270 million parameters begin as PEFT begins, since that start harmed "
            "them, and moves were not judged there",
        )
    ]


def _nats(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f} nats"


def _estimate(result: Mapping[str, float]) -> str:
    return f"{result['value']:+.3f} ({result['low']:+.3f} to {result['high']:+.3f})"
