"""The pages of the preregistered cases: docs/results/placement.md, and placement-2.md of the one before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.dynamic.added import counted
from benchmarks.dynamic.arms import REFERENCE
from benchmarks.dynamic.judging.against import PUBLISHED, STAYING
from benchmarks.dynamic.judging.judge import Interval, tally
from benchmarks.dynamic.judging.placement import case_name
from benchmarks.dynamic.pages.further_pages import paragraph, sections, table
from benchmarks.dynamic.sought import CAP, TRIES
from benchmarks.oracle.published import RULES

BEGIN_AS_ALL = ("auto", "energy", "descent", "elalora", "flexlora")
"""Arms that are `all` until they move something; AdaLoRA and IGU-LoRA begin larger."""


def page(result: Mapping[str, Any], results: Path) -> str:
    """The result in words and tables.

    Args:
        result: of `assemble`, of the newest registration. results: folder with what other benches found.
    """
    lines = [
        *_registered(
            result, "What placement inside the run is worth", "placement.json", "preregistered_auto.json"
        ),
        *paragraph(
            "`auto` begins its adapters along their inputs and decides in the head of the run which ranks move. "
            "*begun* is the first half of that alone: the ranks of `all`, begun so, and nothing moves; `auto` − "
            "`begun` is what the moves are worth. All other arms begin as they were published."
        ),
        "",
        *paragraph(
            "**All of this is on bases of 8 million parameters.** In SmolLM2-135M and Gemma 3 270M a few channels "
            "drown all others, and adapters that begin along them end far above `all` "
            "([figures](../journal.md#beginning-along-the-inputs-on-real-bases-november-2026)). `auto` looks at that "
            "in its first rows, and begins as PEFT begins where it is so: there it is what "
            "[the earlier registration](placement-2.md) judged, moves alone."
        ),
        "",
        *_judged(result),
        *(_earlier(figure) for figure in result["earlier"]),
        *_tables(result),
        *_begun(result.get("start")),
        *_real(result["real_base"]),
        *sections(results),
    ]
    return "\n".join(lines) + "\n"


def earlier_page(result: Mapping[str, Any]) -> str:
    """The second registration in words and tables.

    Args:
        result: of `assemble`.
    """
    lines = [
        *_registered(
            result, "Placement inside the run alone", "earlier/placement-2.json", "preregistered.json"
        ),
        *paragraph(
            "`auto` here began as LoRA begins; [since then](placement.md) it begins along its inputs where these are "
            "spread over many channels, which these cases suggested."
        ),
        "",
        *_judged(result),
        *(_earlier(figure) for figure in result["earlier"]),
        *_tables(result),
        *_unmoved(result),
        *_finer(result),
        *_added(result["cases"]),
        *_sought(result["cases"]),
    ]
    return "\n".join(lines) + "\n"


def _registered(result: Mapping[str, Any], title: str, kept: str, orders: str) -> list[str]:
    """Title, and what was fixed beforehand."""
    registered = result["preregistered"]
    return [
        f"# {title}",
        "",
        *paragraph(
            f"Written by `python -m benchmarks.dynamic judge` from [{kept}](../../benchmarks/results/{kept}). Cases, "
            f"arms, settings, rates and seeds were fixed in [{orders}](../../benchmarks/results/{orders}) (SHA-256 "
            f"`{registered['digest'][:16]}…`, commit `{registered['commit'][:12]}`) before the first judged run."
        ),
        "",
        *paragraph(
            "Each arm has the same parameters, steps and rows, and its own learning rate (1.6 apart, extended until "
            "the best has worse neighbours), tuned on seeds that are not judged. A policy decides inside the run and "
            "takes no steps of its own, so equal steps are equal compute. Differences are nats per token on held-out "
            "rows, with 95 % intervals over seeds and rows. *Steps saved*: how many steps more `all` needs for the "
            "same loss. *Share lost*: of the way from `all` to the best arm (chosen on the other seeds), what `auto` "
            "does not go: 0 % is the best, 100 % is `all`."
        ),
        "",
    ]


def _judged(result: Mapping[str, Any]) -> list[str]:
    """How many cases, and what they come to."""
    return [
        f"Judged so far: {len(result['cases'])} of {result['registered_cases']} registered cases.",
        "",
        *_pooled_words(result["pooled_unseen"]),
    ]


def _tables(result: Mapping[str, Any]) -> list[str]:
    """Cases, losses of all arms, `auto` against each, and what rates are worth."""
    rows = (
        (
            f"{case_name(case)} {case['budget'].removeprefix('like=')}{'' if case['unseen'] else ' (chosen on)'}",
            case["steps"],
            _interval(case["auto_minus_all"], "+.4f"),
            _interval(case["steps_saved"], "+.0f"),
            _interval(case["share_lost"], ".0%"),
            case["verdict"],
        )
        for case in result["cases"]
    )
    lines = table(["case", "steps", "auto − all", "steps saved", "share lost", "verdict"], rows)
    lines += ["", "Loss of every arm, nats per token, mean of the fresh seeds; first arms whose ranks stay:"]
    arms = list(dict.fromkeys(arm for case in result["cases"] for arm in case["arms"]))
    for chosen in ([arm for arm in arms if arm in STAYING], [arm for arm in arms if arm not in STAYING]):
        losses = (
            [f"{case['arms'][arm]['loss']:.4f}" if arm in case["arms"] else "–" for arm in chosen]
            for case in result["cases"]
        )
        names = map(case_name, result["cases"])
        lines += table(["case", *chosen], ((name, *row) for name, row in zip(names, losses, strict=True)))
    return [*lines, *_against(result)]


def _pooled_words(pooled: Mapping[str, Any] | None) -> list[str]:
    if pooled is None:
        return []
    return [
        f"**Unseen cases: better than `all` in {pooled['better']} of {pooled['cases']}, worse in {pooled['worse']}.**",
        f"In the mean over cases auto − all is {_interval(pooled['auto_minus_all'], '+.4f')} nats per token.",
        *_pooled_share(pooled),
        "",
    ]


def _earlier(figure: Mapping[str, Any]) -> str:
    """What an earlier registration came to."""
    return (
        f"Registered before (commit `{figure['commit'][:12]}`, {figure['policy']}): better in {figure['better']} of "
        f"{figure['cases']} cases, worse in {figure['worse']} "
        f"([results](../../benchmarks/results/earlier/{figure['results']})).\n"
    )


def _pooled_share(pooled: Mapping[str, Any]) -> list[str]:
    if pooled["share_lost"]["value"] is None:
        return [
            "No share is lost of anything: of the arms trained so far none beats `all` by more than noise."
        ]
    return [
        f"Share lost, pooled: {_interval(pooled['share_lost'], '.0%')}. Noise floor:",
        f"{_cell(pooled['noise_floor'], '.0%')}, what the best arm, chosen on other seeds, loses to the luckiest.",
    ]


def _against(result: Mapping[str, Any]) -> list[str]:
    """`auto` and the other arms, one by one."""
    pooled = result["pooled_unseen"]
    if pooled is None:
        return []
    found = pooled["best_static"]
    lines = ["", "## auto against the other arms", ""]
    lines += paragraph(
        f"Unseen cases; an arm that was not trained in all of them is missing. {_published(pooled)}"
        "*Best static in hindsight*: the arm of fixed ranks with the lowest loss on the tuning seed, compared on the "
        f"fresh ones. `auto` is shown to be no more than {found['delta']:g} nats above it in {found['noninferior']} of "
        f"{found['cases']} cases, and worse in {found['worse']}."
    )
    lines += ["", "| auto − … | mean over cases | better in | worse in | of |", "|---|---|---|---|---|"]
    for arm, each in pooled["auto_against"].items():
        cells = (arm, _interval(each["mean"], "+.4f"), each["better"], each["worse"], each["cases"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "| case | best static in hindsight | auto − it |", "|---|---|---|"]
    for case in result["cases"]:
        chosen = case["best_static"]
        lines.append(f"| {case_name(case)} | {chosen['arm']} | {_interval(chosen['auto_minus'], '+.4f')} |")
    return lines


def _published(pooled: Mapping[str, Any]) -> str:
    """In how many comparisons with published rules `auto` is better and worse; nothing of those not trained yet."""
    said = ""
    for when, rules in (("move while training", PUBLISHED), ("decide before training", tuple(RULES))):
        arms = [arm for arm in rules if arm in pooled["auto_against"]]
        better, worse, cases = (
            sum(pooled["auto_against"][arm][count] for arm in arms) for count in ("better", "worse", "cases")
        )
        if arms:
            said += (
                f"Against rules as published that {when} ({', '.join(arms)}), `auto` is better in {better} of "
                f"{cases} comparisons and worse in {worse}. "
            )
    return said


def _unmoved(result: Mapping[str, Any]) -> list[str]:
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
        lines.append(f"| {case} | {rate:g} | {of_all:g} | {_interval(minus_all, '+.4f')} |")
    return lines


def _finer(result: Mapping[str, Any]) -> list[str]:
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
            _interval(finer["minus_all"][arm], "+.4f") if arm in finer["minus_all"] else "–"
            for arm in ("auto", "feedforward")
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _begun(start: Mapping[str, Any] | None) -> list[str]:
    """Where adapters begin; nothing before it was judged."""
    if start is None:
        return []
    registered, pooled = start["preregistered"], start["pooled"]
    lines = ["", "## Where adapters begin", ""]
    lines += paragraph(
        "Of the arms that were [registered before](placement-2.md) `eva` alone is far below `all`. Its ranks are "
        "nearly those of `all`; its own is that A begins along the directions of each matrix's input (`--init eva`). "
        "So this was registered by itself, before `auto` began so "
        "([preregistered_start.json](../../benchmarks/results/preregistered_start.json), SHA-256 "
        f"`{registered['digest'][:16]}…`, commit `{registered['commit'][:12]}`): `all` begun so against `all` begun as "
        f"LoRA begins it, on other cases. Judged so far: {len(start['cases'])} of {start['registered_cases']}."
    )
    lines += [
        "",
        *paragraph(
            f"**Better in {pooled['better']} of {pooled['cases']} unseen cases, worse in {pooled['worse']}**; "
            f"in the mean over cases the difference is {_interval(pooled['mean'], '+.4f')} nats per token. Reading the "
            "first rows costs a sixtieth of the run; the last column has `all` trained for so much longer."
        ),
    ]
    rows = (
        (
            f"{case_name(case)} {case['budget'].removeprefix('like=')}",
            case["steps"],
            f"{case['loss_of_all']:.4f}",
            _interval(case["minus_all"], "+.4f"),
            _interval(case["steps_saved"], "+.0f"),
            case["verdict"],
            _cell(case["minus_all_after_its_cost"], "+.4f"),
        )
        for case in start["cases"]
    )
    head = ["case", "steps", "loss of `all`", "begun − all", "steps saved", "verdict", "at equal cost"]
    return lines + table(head, rows)


def _added(cases: Sequence[Mapping[str, Any]]) -> list[str]:
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
        (case_name(case), arm, f"{found['rate']:g}", *(_interval(found[key], "+.4f") for key in columns))
        for case in known
        for arm, found in case["added"].items()
    )
    return lines + table(["case", "arm", "rate", "arm − same ranks", "arm − all", "auto − arm"], rows)


def _sought(cases: Sequence[Mapping[str, Any]]) -> list[str]:
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
            *(_interval(search[key], "+.4f") if search["found"] else "–" for key in columns),
        )
        for case in known
        for search in [case["sought"]]
    )
    return lines + table(["case", "began with", "rate", "found − it", "found − all", "auto − found"], rows)


def _real(pictures: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["", "## Real bases: difference against steps", ""]
    lines += [
        "One run at a constant rate gives every length (a copy decays over its last tenth). arm − all, each at its own",
        "rate, tuned on one seed; with one seed the interval is over rows alone.",
    ]
    for picture in pictures:
        lines += [
            "",
            f"{case_name(picture)} {picture['budget'].removeprefix('like=')}, {picture['batch']} rows a step.",
            "",
        ]
        lines += ["Loss at the longest tuning length, by rate:", ""]
        lines += [
            f"- {arm}: " + ", ".join(f"{rate}: {loss:.4f}" for rate, loss in curve.items())
            for arm, curve in picture["tuning"].items()
        ]
        lines += ["", "| arm | steps | seeds | arm − all |", "|---|---|---|---|"]
        lines += [
            f"| {point['arm']} | {point['steps']} | {point['seeds']}{' fresh' if point['fresh'] else ' of tuning'} | "
            f"{_interval(point['minus_all'], '+.4f')} |"
            for point in picture["points"]
        ]
    return lines


def _interval(figure: Mapping[str, Any], form: str) -> str:
    if figure["value"] is None:
        return "–"
    return f"{_cell(figure['value'], form)} ({_cell(figure['low'], form)} to {_cell(figure['high'], form)})"


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form).replace("%", " %")
