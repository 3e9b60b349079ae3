"""The founding study's page, from the evidence of the claims."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.founding.advice import advice, table
from tools.founding.pictures import (
    against_parameters,
    against_steps,
    at_one_rate,
    case_of,
    forest,
    fresh_points,
    rank_of,
    shared_rates,
)

from loratlas.claims.claim_tables import word
from loratlas.claims.claims_page import standing
from loratlas.claims.comparisons import (
    Contrast,
    contrasts,
    listed_contrasts,
    middle,
    of_study,
    rank_curves,
    tally,
    worth_having,
)
from loratlas.claims.evidence_files import ClaimEvidence
from loratlas.claims.study_extract import base_name

WANTED = ("smollm2-nl2bash", "smollm2-alpaca", "smollm2-gsm8k", "gemma3-nl2bash", "minilm-sst2")
"""Recipes of studies on pretrained bases that this page should rest on."""


def pictures(evidence: ClaimEvidence) -> dict[str, str]:
    """File name → SVG."""
    listed = [one for one in contrasts(evidence.standing) if one.equal]
    drawn = {"founding-forest.svg": forest(listed)}
    swinging = _swinging(evidence)
    if swinging is not None:
        drawn["founding-one-rate.svg"] = at_one_rate(swinging)
    swept = [study for study in evidence.standing if rank_curves(study)]
    drawn |= {f"founding-ranks-{study['name']}.svg": against_parameters(study) for study in swept}
    return drawn | {f"founding-steps-{_slug(p)}.svg": against_steps(p) for p in _long(evidence)}


def page(evidence: ClaimEvidence) -> str:
    """The page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = made.get_template("founding-study.md.j2").render(_context(evidence))
    return "\n\n".join(filled(block) for block in re.split(r"\n{2,}", text.strip())) + "\n"


def filled(block: str) -> str:
    """A paragraph in lines of 120 characters; tables, lists, headings and pictures as they are."""
    if block.startswith(("|", "-", "#", "!")):
        return block
    return textwrap.fill(" ".join(block.split()), 120, break_long_words=False, break_on_hyphens=False)


def _context(evidence: ClaimEvidence) -> dict[str, Any]:
    studies = evidence.standing
    listed = [one for one in contrasts(studies) if one.equal]
    by_half = {half: [one for one in listed if one.half == half] for half in ("attention", "feedforward")}
    budgets = _budgets(by_half)
    return {
        "bases": sorted({study["base"] for study in studies}),
        "tasks": sorted({study["task"] for study in studies}),
        "standing": f"{standing(evidence)[0].upper()}{standing(evidence)[1:]}",
        "table": table(advice(evidence)),
        "attention": _counted(by_half["attention"]),
        "forward": _counted(by_half["feedforward"]),
        "listed": _listed(studies, by_half),
        "budgets": budgets,
        "budget_words": _budget_words(by_half),
        "sweeps": [(study["name"], _sweep(study)) for study in studies if rank_curves(study)],
        "wrong": _worst(by_half),
        "rates": _rates(evidence),
        "one_rate": _one_rate(evidence),
        "pictures": [{"slug": _slug(p), "words": _steps_words(p)} for p in _long(evidence)],
        "inside": _inside(evidence),
        "missing": _missing(evidence),
    }


def _counted(found: Sequence[Contrast]) -> dict[str, Any]:
    median = middle(one.finding["difference"] for one in found)
    return {**tally(found), "studies": len(found), "median": "–" if median is None else f"{median:+.3f} nats"}


def _listed(studies: Sequence[Mapping[str, Any]], by_half: Mapping[str, Sequence[Contrast]]) -> str:
    """What the published lists cost where they were trained, beside their true halves at the same parameters."""
    said = []
    for one in listed_contrasts(studies):
        role = of_study(by_half[one.half], one.study)
        if role:
            said.append(
                f"the {word(one.half)} list is {one.finding['difference']:+.3f} nats from full LoRA "
                f"({one.finding['verdict']}), {word(one.half)} alone with the parameters of full LoRA "
                f"{role[0].finding['difference']:+.3f} ({role[0].finding['verdict']}), on {one.study['task']} with "
                f"{one.study['base']}"
            )
    return f"Trained as published, {'; '.join(said)}." if said else ""


def _budgets(by_half: Mapping[str, Sequence[Contrast]]) -> list[dict[str, str]]:
    """Studies of one base and task at several ranks of the reference."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for half, listed in by_half.items():
        for one in listed:
            key = (one.study["base"], one.study["task"], rank_of(one))
            row = rows.setdefault(key, dict(zip(("base", "task", "rank"), key, strict=True)))
            row[half] = f"{one.finding['difference']:+.3f}, {one.finding['verdict']}"
    several = {key[:2] for key in rows if len({k[2] for k in rows if k[:2] == key[:2]}) > 1}
    return [
        {"attention": "–", "feedforward": "–", **row}
        for key, row in sorted(rows.items(), key=lambda item: (item[0][0], item[0][1], int(item[0][2] or 0)))
        if key[:2] in several
    ]


def _budget_words(by_half: Mapping[str, Sequence[Contrast]]) -> str:
    turned = 0
    for listed in by_half.values():
        signs: dict[tuple[str, str], set[bool]] = {}
        for one in listed:
            if one.finding["verdict"] in ("better", "worse"):
                signs.setdefault((one.study["base"], one.study["task"]), set()).add(
                    one.finding["difference"] > 0
                )
        turned += sum(len(seen) > 1 for seen in signs.values())
    if turned:
        return f"In {turned} of these the sign turns with the budget."
    return "The order does not turn within this range."


def _sweep(study: Mapping[str, Any]) -> str:
    """What a sweep of ranks says: the cheapest feed-forward point that no point of attention reaches, and doublings."""
    by_half = {curve.half: curve for curve in rank_curves(study)}
    attention, forward = by_half["attention"], by_half["feedforward"]
    best = min(attention.points, key=lambda point: point[2])
    below = [point for point in forward.points if point[2] < best[2]]
    where = f"{study['task']} on {study['base']}"
    gains = {half: [f"{gain:.3f}" for gain in curve.gains()] for half, curve in by_half.items()}
    doublings = (
        f"Each doubling of the rank lowers the loss by {', '.join(gains['feedforward'])} nats in feed-forward and by "
        f"{', '.join(gains['attention'])} in attention: both diminish."
    )
    if not below:
        return f"A sweep of ranks in either half ({where}, each at its own rate) crosses. {doublings}"
    rank, trainable, loss, _ = below[0]
    return (
        f"A sweep of ranks in either half ({where}, each at its own rate): feed-forward of rank {rank} with "
        f"{trainable:,} parameters reaches {loss:.3f} nats, attention of rank {best[0]} with {best[1]:,} only "
        f"{best[2]:.3f}. {doublings}"
    )


def _worst(by_half: Mapping[str, Sequence[Contrast]]) -> dict[str, str]:
    worst: dict[str, str] = {}
    for half, listed in by_half.items():
        if listed:
            one = max(listed, key=lambda each: each.finding["difference"])
            worst[half] = f"{one.finding['difference']:+.3f} nats"
            worst[f"{half}_where"] = f"{one.study['task']} on {one.study['base']}"
    return {"attention": "", **worst}


def _rates(evidence: ClaimEvidence) -> list[dict[str, str]]:
    """The loss of all layers beside its best rate, one seed, on real bases."""
    rows = []
    for picture in (evidence.placement or {}).get("real_base", ()):
        curve = {float(rate): loss for rate, loss in picture["tuning"]["all"].items()}
        best = min(curve.values())
        steps = max((p["steps"] for p in picture["points"] if not p["fresh"]), default=0)
        rows += [
            {
                "base": picture["base"].split(":")[-1],
                "task": case_of(picture),
                "steps": str(steps),
                "rate": f"{rate:g}",
                "loss": f"{loss:.3f}",
                "off": "best" if loss == best else f"{loss - best:+.3f}",
            }
            for rate, loss in sorted(curve.items())
        ]
    return rows


def _swinging(evidence: ClaimEvidence) -> Mapping[str, Any] | None:
    """The study in which the difference of feed-forward from all layers changes most with the rate that both share."""

    def swing(study: Mapping[str, Any]) -> float:
        values = [value for _, value in shared_rates(study).get("feedforward", ())]
        return max(values) - min(values) if len(values) > 2 else -1.0

    # Halves of a sweep have ranks of their own, so that a rate is not all that their differences hang on.
    studies = [study for study in evidence.standing if not rank_curves(study)]
    result = max(studies, key=swing, default=None)
    return None if result is None or swing(result) < 0 else result


def _turn(curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """A sentence where the half that looks better is another one at the other end of the rates."""
    ends = [
        (attention[0], attention[1] < forward[1]) for attention, forward in zip(*curves.values(), strict=True)
    ]
    (low, first), (high, last) = ends[0], ends[-1]
    if first == last:
        return ""
    names = {True: "attention", False: "feed-forward"}
    return f" At {low:g} {names[first]} looks the better half, at {high:g} {names[last]} does."


def _one_rate(evidence: ClaimEvidence) -> str:
    study = _swinging(evidence)
    if study is None:
        return ""
    curves = shared_rates(study)
    said = [
        f"{word} alone anything from {min(values):+.3f} to {max(values):+.3f} nats"
        for half, word in (("attention", "attention"), ("feedforward", "feed-forward"))
        for values in [[value for _, value in curves[half]]]
    ]
    rates = [rate for rate, _ in curves["attention"]]
    return (
        f"On {study['base']} with {study['task']} a comparison at one rate between {rates[0]:g} and {rates[-1]:g} "
        f"finds {' and '.join(said)} from all layers, depending on nothing but that rate: an arm far from its own best "
        "rate looks like a bad placement." + _turn(curves)
    )


def _long(evidence: ClaimEvidence) -> list[Mapping[str, Any]]:
    """Pictures of difference against steps that have at least three lengths on fresh seeds."""
    return [
        picture
        for picture in (evidence.placement or {}).get("real_base", ())
        if len(fresh_points(picture)) > 2
    ]


def _slug(picture: Mapping[str, Any]) -> str:
    return f"{base_name(picture['base'])}-{case_of(picture).replace(' ', '-').replace(':', '')}"


def _steps_words(picture: Mapping[str, Any]) -> str:
    points = fresh_points(picture)
    first, last = points[0], points[-1]
    settled = last["minus_all"]["low"] <= 0 <= last["minus_all"]["high"]
    seeds = f"{last['seeds']} {'seed' if last['seeds'] == 1 else 'seeds'}, intervals over rows" + (
        " alone" if last["seeds"] == 1 else " and seeds"
    )
    return (
        f"On {base_name(picture['base'])} with {case_of(picture)} feed-forward alone is "
        f"{first['minus_all']['value']:+.3f} nats from all layers after {first['steps']} steps and "
        f"{last['minus_all']['value']:+.3f} after {last['steps']} ({seeds}): "
        + (
            "what placement gives a short run, a longer run has anyway."
            if settled
            else "the difference is still there at the longest length tried."
        )
    )


def _inside(evidence: ClaimEvidence) -> dict[str, Any] | None:
    pooled = (evidence.placement or {}).get("pooled_unseen")
    if pooled is None:
        return None
    words = (
        "It is worth having."
        if worth_having(pooled)
        else "Placement hardly matters there; the rate and the number of steps do."
    )
    again = pooled.get("finer")
    finer = f" (at finer rates {again['better']} and {again['worse']})" if again else ""
    return {**{name: pooled[name] for name in ("better", "worse", "cases")}, "finer": finer, "words": words}


def _missing(evidence: ClaimEvidence) -> list[str]:
    there = {study["name"] for study in evidence.studies if study["complete"]}
    lines = [f"`recipes/{name}.yaml`: not run yet." for name in WANTED if name not in there]
    if evidence.speed is None:
        lines.append("Step times on DialoGPT-medium's shape: not measured.")
    largest = max(study["parameters"] for study in evidence.standing)
    lines.append(f"The largest base of a finished study has {largest:,} parameters.")
    lines.append(
        "The published arms on DialoGPT-medium itself: `recipes/dialogpt-alpaca.yaml`, for who has its weights."
    )
    return lines
