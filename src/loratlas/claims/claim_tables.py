"""The tables behind the verdicts, and how their numbers print."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from loratlas.claims.claim_verdict import ClaimTable
from loratlas.claims.comparisons import Contrast, of_study, tally
from loratlas.claims.evidence_files import ClaimEvidence
from loratlas.formats import count


def rank_table(study: Any, curves: Any) -> ClaimTable:
    rows = [
        (curve.half, str(rank), count(trainable), f"{loss:.4f}", interval(ci))
        for curve in curves
        for rank, trainable, loss, ci in curve.points
    ]
    title = f"Loss against rank on {study['base']}, {study['task']}, each at its own learning rate"
    return ClaimTable(
        title=title, columns=("half", "rank", "parameters", "loss", "95 % interval"), rows=tuple(rows)
    )


def contrast_table(title: str, found: list[Contrast]) -> ClaimTable:
    rows = [
        (
            one.study["base"], one.study["task"], str(one.study["steps"]), word(one.half),
            f"{one.finding['difference']:+.4f}", interval(one.finding["ci"]),
            "–" if one.share is None else f"{one.share:+.1%}",
            estimate(one.finding.get("steps_saved"), ".0f"),
            one.finding["verdict"] + mark(one.study),
            "–" if one.finding["detectable"] is None else f"{one.finding['detectable']:.4f}",
        )
        for one in found
    ]  # fmt: skip
    columns = (
        "base",
        "task",
        "steps",
        "half",
        "nats",
        "interval",
        "of the gain",
        "steps saved",
        "verdict",
        "detectable",
    )
    return ClaimTable(title=title, columns=columns, rows=tuple(rows))


def listed_table(title: str, listed: list[Contrast], roles: list[Contrast]) -> ClaimTable:
    """Lists of module names beside the true half of the same studies, with what each trains."""
    rows = []
    for one in listed:
        arms = {arm["name"]: arm for arm in one.study["arms"]}
        for each in (one, *of_study(roles, one.study)):
            arm = arms[each.finding["arm"]]
            rows.append(
                (
                    one.study["base"], one.study["task"], str(one.study["steps"]), arm["placement"],
                    count(arm["trainable"]), f"{each.finding['difference']:+.4f}", interval(each.finding["ci"]),
                    each.finding["verdict"] + mark(each.study), f"{arm['lr']:.2g}",
                )
            )  # fmt: skip
    columns = ("base", "task", "steps", "placement", "parameters", "nats", "interval", "verdict", "rate")
    return ClaimTable(title=title, columns=columns, rows=tuple(rows))


def opposed_table(turned: Iterable[tuple[Any, Any]]) -> ClaimTable:
    """Pairs of a study and two of its arms that a definition ranks otherwise than the token mean, and by how much."""
    rows = [
        (
            study["name"], f"{pair['first']} − {pair['second']}", f"{pair['token_mean']:+.4f}", pair["by"],
            f"{pair['other']['difference']:+.4f}", interval(pair["other"]["ci"]),
            pair["unit"].replace("_", " "), "yes" if pair["established"] else "no",
        )
        for study, pair in turned
    ]  # fmt: skip
    columns = ("study", "arms", "token mean", "definition", "by it", "interval", "unit", "established")
    return ClaimTable(
        title="Arms that another definition ranks the other way round", columns=columns, rows=tuple(rows)
    )


def count_table(arms: list[Any]) -> ClaimTable:
    rows = [
        (
            arm.name, arm.placement, count(arm.trainable), f"{arm.less_than_full:.2%}", f"{arm.less_than_model:.2%}",
            arm.holds or "–",
        )
        for arm in arms
    ]  # fmt: skip
    columns = (
        "arm",
        "placement",
        "parameters",
        "less than full LoRA",
        "less than the model",
        "the list holds",
    )
    return ClaimTable(title="DialoGPT-medium, from its config alone", columns=columns, rows=tuple(rows))


def speed_of(evidence: ClaimEvidence, name: str) -> Any:
    arms = (evidence.speed or {}).get("arms", ())
    return next((arm for arm in arms if arm["name"] == name.replace(", ", " ")), None)


def over_floor(evidence: ClaimEvidence, side: str) -> str:
    return f"{speed_of(evidence, 'full')[side]['over_floor']['median']:.2f} times"


def speed_table(evidence: ClaimEvidence) -> ClaimTable:
    assert evidence.speed is not None
    rows = [
        (
            arm["name"], count(arm["trainable"]),
            *(f"{arm[side][over]['median']:.3f}" for side in ("peft", "ours") for over in ("over_floor", "over_full")),
        )
        for arm in evidence.speed["arms"]
    ]  # fmt: skip
    columns = ("arm", "parameters", "PEFT / floor", "PEFT / full", "ours / floor", "ours / full")
    machine = evidence.speed["machine"]
    processor = f"{machine.get('processor', 'CPU')}, one thread"
    title = (
        f"A step on DialoGPT-medium's shape, {evidence.speed['dtype']}, {processor}; the floor is the frozen base in "
        "transformers' layers, some of which our step replaces"
    )
    return ClaimTable(title=title, columns=columns, rows=tuple(rows))


def short_of_protocol(study: Mapping[str, Any]) -> bool:
    """Whether a study of the second edition chose a learning rate by fewer seeds than that asks for.

    Args:
        study: the extract.
    """
    from loratlas.study.spec.rates_and_seeds import FEWEST_NEAR

    seeds = study["tuning_seeds"]
    return not study["superseded"] and seeds is not None and seeds < FEWEST_NEAR


def mark(study: Mapping[str, Any]) -> str:
    """What stands behind a study's verdicts where they were not reached as the protocol asks; else nothing.

    Args:
        study: the extract.
    """
    if study["superseded"]:
        return " (superseded)"
    seeds = study["tuning_seeds"]
    few = f"{seeds} tuning seed{'' if seeds == 1 else 's'} near an optimum"
    return f" (short of the protocol: {few})" if short_of_protocol(study) else ""


def tallied(found: list[Contrast]) -> str:
    return (
        ", ".join(f"{verdict} in {number}" for verdict, number in tally(found).items() if number)
        or "in no study"
    )


def where(one: Contrast) -> str:
    return f"{one.study['task']} on {one.study['base']}"


def word(half: str) -> str:
    return {"feedforward": "feed-forward", "all": "all layers"}.get(half, half)


def one_of(placements: Iterable[str]) -> str:
    """Placements of which any may be meant, as in a sentence."""
    return " or ".join(word(placement) for placement in sorted(placements))


def halves_by_place(some: Iterable[Contrast]) -> list[str]:
    """Each task and base with the halves that are meant there, sorted."""
    halves: dict[str, set[str]] = {}
    for one in some:
        halves.setdefault(where(one), set()).add(word(one.half))
    return [f"{' and '.join(sorted(names))} alone, {place}" for place, names in sorted(halves.items())]


def span(values: list[float]) -> str:
    return f"{min(values):+.3f} to {max(values):+.3f}" if len(values) > 1 else f"{values[0]:+.3f}"


def interval(ends: Any) -> str:
    if not ends or None in ends:
        return "–"
    return (
        f"{ends[0]:+.4f} to {ends[1]:+.4f}"
        if ends[0] < 0 or abs(ends[0]) < 1
        else f"{ends[0]:.4f} to {ends[1]:.4f}"
    )


def estimate(found: Any, form: str) -> str:
    if not found or found.get("value") is None:
        return "–"
    low, high = found.get("low"), found.get("high")
    ends = "" if low is None or high is None else f" ({low:+{form}} to {high:+{form}})"
    return f"{found['value']:+{form}}{ends}"
