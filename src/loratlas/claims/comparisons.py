"""Findings of many studies side by side: where attention and feed-forward stand against all linear layers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from loratlas.claims.published_claims import published_half
from loratlas.placement.terms import Placement

HALVES = ("attention", "feedforward")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """One half of a model against all linear layers, in one study.

    Args:
        study: the study's extract.
        half: "attention" or "feedforward".
        equal: whether both spent the same parameters; otherwise the same rank, on fewer matrices.
        finding: of the study.
        share: of what the reference gains over the base that this arm gives back; None where it gains nothing.
    """

    study: Mapping[str, Any]
    half: str
    equal: bool
    finding: Mapping[str, Any]
    share: float | None


def contrasts(studies: Iterable[Mapping[str, Any]]) -> list[Contrast]:
    """Every finding whose reference is `all` and whose arm is one half of it, at its parameters or at its rank.

    The reference may be written in any way that adapts every linear layer at one rank, as a list of names too.
    """
    found = []
    for one in _against_all(studies, lambda placement: _half(selector(placement))):
        arms = {arm["name"]: arm for arm in one.study["arms"]}
        placements = arms[one.finding["arm"]]["placement"], arms[one.study["reference"]]["placement"]
        if one.equal or rank(placements[0]) == rank(placements[1]):
            found.append(one)
    return found


def listed_contrasts(studies: Iterable[Mapping[str, Any]]) -> list[Contrast]:
    """Every finding whose reference is `all` and whose arm is one of the published lists of module names.

    `half` is what the list was published as, whatever it holds.
    """
    return _against_all(studies, published_half)


def of_study(found: Iterable[Contrast], study: Mapping[str, Any]) -> list[Contrast]:
    """Those of one study."""
    return [one for one in found if one.study["name"] == study["name"]]


def _half(name: str | None) -> str | None:
    return name if name in HALVES else None


def _against_all(
    studies: Iterable[Mapping[str, Any]], half_of: Callable[[str], str | None]
) -> list[Contrast]:
    contrasted = []
    for study in studies:
        arms = {arm["name"]: arm for arm in study["arms"]}
        reference = arms[study["reference"]]
        if selector(reference["placement"]) != "all" and not reference.get("all_layers"):
            continue
        gained = None
        if study["base_nll"] is not None and reference["nll"] is not None:
            gained = study["base_nll"] - reference["nll"]
        for finding in study["findings"]:
            arm = arms[finding["arm"]]
            half = half_of(arm["placement"])
            if half is None or finding["versus"] != study["reference"] or finding["difference"] is None:
                continue
            equal = 0.9 < arm["trainable"] / reference["trainable"] < 1.1
            share = finding["difference"] / gained if gained and gained > 0 else None
            contrasted.append(Contrast(study=study, half=half, equal=equal, finding=finding, share=share))
    return contrasted


def possible_firsts(both: Mapping[str, Contrast]) -> frozenset[str]:
    """What may have the lowest loss in a study: all layers (``all``), the half with the lower loss, or either of the
    two where their difference is not established.

    Args:
        both: half → its contrast with all layers.
    """
    half = min(both, key=lambda each: both[each].finding["difference"])
    established = {"better": {half}, "worse": {"all"}}
    return frozenset(established.get(both[half].finding["verdict"], {"all", half}))


def worth_having(pooled: Mapping[str, Any]) -> bool:
    """Whether a policy is better than `all` in two thirds of the unseen cases at least, and worse in none.

    >>> worth_having({"better": 6, "worse": 0, "cases": 9}), worth_having({"better": 9, "worse": 1, "cases": 10})
    (True, False)
    """
    return 3 * pooled["better"] >= 2 * pooled["cases"] and not pooled["worse"]


def selector(placement: str) -> str | None:
    """The set that a placement is of, whatever its rank; None for one of several terms or names, or of some layers.

    >>> selector("attention:8"), selector("mlp"), selector("all:4 - router"), selector("attention@top/2")
    ('attention', 'feedforward', None, None)
    """
    from loratlas.errors import PlacementError
    from loratlas.placement.language import parse

    try:
        parsed: Placement = parse(placement)
    except PlacementError:
        return None
    first, more = parsed.terms[0], parsed.terms[1:]
    name, others = first.names[0], first.names[1:]
    whole = not more and not others and first.layers is None and name.kind == "word"
    return name.word if whole else None


def rank(placement: str) -> int | None:
    """The rank that a placement's first term names; None where the budget decides it.

    >>> rank("attention:8"), rank("attention")
    (8, None)
    """
    from loratlas.placement.language import parse

    named = parse(placement).terms[0].rank
    return named if isinstance(named, int) else None


def tally(found: Iterable[Contrast]) -> dict[str, int]:
    """Verdict → number of findings."""
    counts: dict[str, int] = dict.fromkeys(("better", "equivalent", "worse", "undetermined"), 0)
    for contrast in found:
        counts[contrast.finding["verdict"]] += 1
    return counts


def middle(values: Iterable[float | None]) -> float | None:
    """The median of those that there are.

    >>> middle([3.0, None, 1.0]), middle([None])
    (2.0, None)
    """
    known = [value for value in values if value is not None]
    return median(known) if known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankCurve:
    """The loss of one half of the model at several ranks, each at its own learning rate.

    Args:
        half: "attention" or "feedforward".
        points: (rank, trainable, loss, interval), by rank.
    """

    half: str
    points: tuple[tuple[int, int, float, tuple[float, float] | None], ...]

    def gains(self) -> list[float]:
        """How much each doubling of the rank lowers the loss, in nats."""
        losses = [loss for _, _, loss, _ in self.points]
        return [before - after for before, after in itertools.pairwise(losses)]


def rank_curves(study: Mapping[str, Any]) -> list[RankCurve]:
    """The curves of a study that sweeps ranks per half; empty for any other."""
    points: dict[str, list[tuple[int, int, float, tuple[float, float] | None]]] = {
        half: [] for half in HALVES
    }
    for arm in study["arms"]:
        half = selector(arm["placement"])
        named = rank(arm["placement"]) if half in HALVES else None
        if half in HALVES and named is not None and arm["nll"] is not None:
            interval = tuple(arm["ci"]) if arm["ci"] and None not in arm["ci"] else None
            points[half].append((named, arm["trainable"], arm["nll"], interval))
    if any(len(listed) < 3 for listed in points.values()):
        return []
    return [RankCurve(half=half, points=tuple(sorted(listed))) for half, listed in points.items()]


def crossing(one: RankCurve, other: RankCurve) -> float | None:
    """The number of parameters at which two curves have the same loss, by straight lines in log parameters between
    points; None where one lies below the other throughout the range that they share."""
    import numpy as np

    x = [np.log([point[1] for point in curve.points]) for curve in (one, other)]
    low, high = max(values[0] for values in x), min(values[-1] for values in x)
    if low >= high:
        return None
    grid = np.unique(np.concatenate([np.linspace(low, high, 200), *[v[(v >= low) & (v <= high)] for v in x]]))
    losses = [
        np.interp(grid, v, [p[2] for p in curve.points]) for v, curve in zip(x, (one, other), strict=True)
    ]
    difference = losses[0] - losses[1]
    turns = np.flatnonzero((difference[:-1] * difference[1:] <= 0) & (difference[:-1] != difference[1:]))
    if not len(turns):
        return None
    at = turns[0]
    share = difference[at] / (difference[at] - difference[at + 1])
    return float(np.exp(grid[at] + share * (grid[at + 1] - grid[at])))
