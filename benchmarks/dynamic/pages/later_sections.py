"""Sections of docs/results/placement.md beside its cases: where adapters begin, what scans are worth, real bases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.dynamic.judging.placement import case_name
from benchmarks.dynamic.judging.scans import readable
from benchmarks.dynamic.pages.figures import interval, steps
from benchmarks.dynamic.pages.further_pages import paragraph, table


def begun(start: Mapping[str, Any] | None) -> list[str]:
    """Where adapters begin; nothing before it was judged."""
    if start is None:
        return []
    lines = ["", "## Where adapters begin", ""]
    lines += paragraph(
        "Of the arms that were [registered before](placement-2.md) `eva` alone is far below `all`. Its ranks are "
        "nearly those of `all`; its own is that A begins along the directions of each matrix's input (`--init eva`). "
        "So this was registered by itself, before `auto` began so "
        f"({_registration(start, 'preregistered_start.json')}): `all` begun so against `all` begun as "
        f"LoRA begins it, on other cases. Judged so far: {len(start['cases'])} of {start['registered_cases']}."
    )
    lines += [
        "",
        *paragraph(
            f"{_found(start)} Reading the first rows costs a sixtieth of the run; the last column has `all` trained "
            "for so much longer."
        ),
    ]
    return lines + _alone(start, "begun")


def explained(ranks: Mapping[str, Any] | None) -> list[str]:
    """Ranks by the explained variance of inputs; nothing before they were judged."""
    if ranks is None:
        return []
    lines = ["", "## Ranks by explained variance", ""]
    lines += paragraph(
        "Of all arms of this page `eva` loses least: adapters that begin along their inputs, and ranks that follow how "
        "much of each input a direction explains, twice the reference at most. That was read on the cases above, so "
        "that it was registered anew, before `auto` does so, on other cases "
        f"({_registration(ranks, 'preregistered_ranks.json')}). Judged so far: {len(ranks['cases'])} "
        f"of {ranks['registered_cases']}; those that are missing were not trained yet."
    )
    lines += [
        "",
        *paragraph(f"{_found(ranks)} `auto` does not follow these ranks yet."),
    ]
    return lines + _alone(ranks, "eva")


def _registration(found: Mapping[str, Any], file: str) -> str:
    """Where an arm was registered by itself, and since when."""
    registered = found["preregistered"]
    return (
        f"[{file}](../../benchmarks/results/{file}), SHA-256 `{registered['digest'][:16]}…`, commit "
        f"`{registered['commit'][:12]}`"
    )


def _found(found: Mapping[str, Any]) -> str:
    """What came of an arm that was registered by itself, in a sentence."""
    pooled = found["pooled"]
    return (
        f"**Better in {pooled['better']} of {pooled['cases']} unseen cases, worse in {pooled['worse']}**; in the mean "
        f"over cases the difference is {interval(pooled['mean'], '+.4f')} nats per token."
    )


def _alone(found: Mapping[str, Any], arm: str) -> list[str]:
    """An arm that was registered by itself, case by case."""
    rows = (
        (
            f"{case_name(case)} {case['budget'].removeprefix('like=')}",
            case["steps"],
            f"{case['loss_of_all']:.4f}",
            interval(case["minus_all"], "+.4f"),
            steps(case["steps_saved"], case["steps"] / 2, -case["steps"] / 2),
            case["verdict"],
            interval(case["minus_all_at_equal_cost"], "+.4f"),
        )
        for case in found["cases"]
    )
    head = ["case", "steps", "loss of `all`", f"{arm} − all", "steps saved", "verdict", "at equal cost"]
    return table(head, rows)


def scans(found: Mapping[str, Any]) -> list[str]:
    """What plans of a scan before training are worth."""
    lines = ["", "## Plans of a scan before training", ""]
    seen, third = found["seen"], found["third"]
    lines += paragraph(
        f"What plans by a score lose of the way from `all` to the best plan that was trained: 0 % is the best plan, "
        f"100 % is `all`, more is worse than `all`. *Held out*: {', '.join(map(readable, found['cases']))}, which "
        f"chose no score before they were read; *chosen on*: the {len(seen['cases'])} cases that chose "
        f"`{seen['chose']}`, which say nothing of it. Losses are those of the bench's first edition (presets, single "
        f"roles, random plans and plans by scores, equal parameters, three seeds). *{readable(third['case'])}*, held "
        f"out as well, has {third['plans']} plans: nats per token against `all` over {third['seeds']} seeds. The "
        "scan's own steps are not counted anywhere."
    )
    rows = (
        (
            f"`{column}`",
            interval(entry["share_lost"], ".0%"),
            interval(seen["columns"][column]["share_lost"], ".0%") if column in seen["columns"] else "–",
            interval(third["minus_all"][column], "+.3f") if column in third["minus_all"] else "–",
        )
        for column, entry in found["columns"].items()
    )
    return lines + table(["plans by", "held out", "chosen on", readable(third["case"])], rows)


def real(pictures: Sequence[Mapping[str, Any]]) -> list[str]:
    """Difference against steps on real bases."""
    lines = ["", "## Real bases: difference against steps", ""]
    lines += paragraph(
        "One run at a constant rate gives every length (a copy decays over its last tenth). arm − all, each at its own "
        "rate, tuned on one seed; with one seed the interval is over rows alone. *moves*: `auto` as it is on these "
        "bases, where adapters begin as PEFT begins them; it decides at a tenth of the longest length. *Steps saved*: "
        "by the curve of `all` on the same seeds, ≥ and ≤ where that curve ends. Curves: "
        "[founding study](founding-study.md)."
    )
    for picture in pictures:
        lines += [
            "",
            f"{case_name(picture)} {picture['budget'].removeprefix('like=')}, {picture['batch']} rows a step.",
            "",
        ]
        lines += ["Loss at the longest tuning length, by rate:", ""]
        lines += [
            f"- {arm}: " + ", ".join(f"{rate}: {loss:.4f}" for rate, loss in curve.items()) + _edge(curve)
            for arm, curve in picture["tuning"].items()
        ]
        lines += table(["arm", "steps", "seeds", "arm − all", "steps saved"], map(_point, picture["points"]))
    return lines


def _point(point: Mapping[str, Any]) -> tuple[object, ...]:
    which = f"{point['seeds']}{' fresh' if point['fresh'] else ' of tuning'}"
    saved = "–" if point["steps_saved"] is None else steps(point["steps_saved"], *point["curve_reaches"])
    return point["arm"], point["steps"], which, interval(point["minus_all"], "+.4f"), saved


def _edge(curve: Mapping[str, float]) -> str:
    """Said where the best rate has no worse neighbour on one side."""
    best = min(curve, key=lambda rate: curve[rate])
    rates = sorted(curve, key=float)
    return "; the best is the last that was tried" if best in (rates[0], rates[-1]) else ""
