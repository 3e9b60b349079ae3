"""Sections of docs/results/placement-2.md alone: what was added to the second registration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.dynamic.added import counted
from benchmarks.dynamic.arms import REFERENCE
from benchmarks.dynamic.judging.judge import Interval, tally
from benchmarks.dynamic.judging.placement import case_name
from benchmarks.dynamic.pages.figures import interval
from benchmarks.dynamic.pages.further_pages import paragraph, table
from benchmarks.dynamic.sought import CAP, TRIES

BEGIN_AS_ALL = ("auto", "energy", "descent", "elalora", "flexlora")
"""Arms that are `all` until they move something; AdaLoRA and IGU-LoRA begin larger."""


def unmoved(result: Mapping[str, Any]) -> list[str]:
    """Policies that moved nothing are `all` again: what its rate, chosen by one seed, is worth."""
    again = {
        (case_name(case), found["rate"]): (case["arms"][REFERENCE]["rate"], found["minus_all"])
        for case in result["cases"]
        for arm, found in case["arms"].items()
        if arm in BEGIN_AS_ALL and not found["moves"] and found["rate"]
    }
    if not again:
        return []
    lines = ["", "## What the choice of a rate is worth", ""]
    lines += paragraph(
        "A policy that moved nothing, as rules that exchange ranks four at a time do where all ranks are 1, is `all` "
        "again, on the same seeds, at the rate that its own tuning run chose. At the same rate what remains are "
        "roundings of another processor; at another one it is what one tuning seed leaves to luck."
    )
    lines += ["", "| case | rate | rate of `all` | the same − `all` |", "|---|---|---|---|"]
    for (case, rate), (of_all, minus_all) in again.items():
        lines.append(f"| {case} | {rate:g} | {of_all:g} | {interval(minus_all, '+.4f')} |")
    return lines


def finer(result: Mapping[str, Any]) -> list[str]:
    """Cases at finer rates; nothing before there are any."""
    counts = (result["pooled_unseen"] or {}).get("finer")
    if not counts:
        return []
    known = [case for case in result["cases"] if case.get("finer")]
    lines = [
        "",
        "## The same at rates 1.26 apart",
        "",
        "For three arms the two rates half-way to the best one's neighbours were tried as well, and an arm whose best",
        "was one of them was trained on the same fresh seeds again. Not registered: added after the runs above had",
        "been read.",
        f"`auto` is then better than `all` in {counts['better']} of {counts['cases']} and worse in {counts['worse']}.",
        "",
        "| case | rates: all, auto, feedforward | auto − all | feedforward − all |",
        "|---|---|---|---|",
    ]
    for case in known:
        finer = case["finer"]
        cells = [case_name(case), ", ".join(f"{rate:g}" for rate in finer["rates"].values())]
        cells += [
            interval(finer["minus_all"][arm], "+.4f") if arm in finer["minus_all"] else "–"
            for arm in ("auto", "feedforward")
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def added(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Arms that were not registered; nothing before there are any."""
    known = [case for case in cases if case["added"]]
    if not known:
        return []
    starts, autos = counted(known, "minus_same_ranks"), counted(known, "auto_minus")
    lines = ["", "## Added later", ""]
    lines += paragraph(
        "*gora_start*: the ranks of `gora`, and B begun along the gradient (its authors' own start) instead of at 0. "
        "*all_eva*: the ranks of `all`, and A begun along the inputs, as `eva` begins it. "
        "Not registered: added after the runs above had been read, tuned and compared like them, on the same seeds, "
        "and part of no figure above."
    )
    for arm, start in starts.items():
        lines += paragraph(
            f"Against the same ranks begun as LoRA begins them `{arm}` is better in {start['better']} of "
            f"{start['cases']} cases and worse in {start['worse']}; `auto` is better than it in "
            f"{autos[arm]['better']} and worse in {autos[arm]['worse']}."
        )
    columns = ("minus_same_ranks", "minus_all", "auto_minus")
    rows = (
        (case_name(case), arm, f"{found['rate']:g}", *(interval(found[key], "+.4f") for key in columns))
        for case in known
        for arm, found in case["added"].items()
    )
    return lines + table(["case", "arm", "rate", "arm − same ranks", "arm − all", "auto − arm"], rows)


def sought(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """The search for a better plan; nothing before one has ended."""
    known = [case for case in cases if case["sought"]]
    if not known:
        return []
    found = [case for case in known if case["sought"]["found"]]
    apart = tally([Interval(**case["sought"]["minus_start"]) for case in found])
    lines = ["", "## A better plan, sought", ""]
    lines += paragraph(
        "Is the best that arms are measured against too low? From the arm of fixed ranks that ended lowest on the "
        f"tuning seed, at its rate, {TRIES} neighbours were trained on that seed in full, each of the best plan so "
        f"far: ranks capped at {CAP} times the reference, the first and the last layer left out, a quarter of the "
        "sites exchanging a rank. Not registered, and part of no figure above. A neighbour that ended lower on the "
        f"tuning seed was found in {len(found)} of {len(known)} cases; on the fresh seeds it is better than the plan "
        f"that the search began with in {apart['better']} of these and worse in {apart['worse']}."
    )
    columns = ("minus_start", "minus_all", "auto_minus")
    rows = (
        (
            case_name(case),
            search["start"],
            f"{search['rate']:g}",
            *(interval(search[key], "+.4f") if search["found"] else "–" for key in columns),
        )
        for case in known
        for search in [case["sought"]]
    )
    return lines + table(["case", "began with", "rate", "found − it", "found − all", "auto − found"], rows)
