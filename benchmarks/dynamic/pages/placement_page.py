"""The pages of the preregistered cases: docs/results/placement.md, and placement-2.md of the one before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.dynamic.arms import REFERENCE
from benchmarks.dynamic.judging.against import PUBLISHED, STAYING
from benchmarks.dynamic.judging.placement import case_name
from benchmarks.dynamic.pages import earlier_sections, later_sections
from benchmarks.dynamic.pages.figures import cell, interval, steps
from benchmarks.dynamic.pages.further_pages import paragraph, sections, table
from benchmarks.oracle.published import RULES


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
        *later_sections.begun(result.get("start")),
        *later_sections.explained(result.get("ranks")),
        *later_sections.scans(result["scans"]),
        *later_sections.real(result["real_base"]),
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
        *earlier_sections.unmoved(result),
        *earlier_sections.finer(result),
        *earlier_sections.added(result["cases"]),
        *earlier_sections.sought(result["cases"]),
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
            "the best has worse neighbours), tuned on seeds that are not judged, but on the same held-out rows: what a "
            "rate owes to the luck of these rows is in no interval. A policy decides inside the run and takes no steps "
            f"of its own{_reading(result)}. AdaLoRA and IGU-LoRA begin with 1.5 times the parameters that they end "
            "with. Differences are nats per token on held-out rows, with 95 % intervals over seeds and rows; rows that "
            "answer one prompt count once. *Steps saved*: how many steps more `all` needs for the same loss, with the "
            "ends of that interval; ≥ and ≤ where `all` was trained no longer and no shorter. *Share lost*: of the way "
            "from `all` to the best arm (chosen on the other seeds), what `auto` does not go: 0 % is the best, 100 % "
            "is `all`."
        ),
        "",
        *_changed(registered),
    ]


def _reading(result: Mapping[str, Any]) -> str:
    """What reading the first rows costs, where `auto` begins by them."""
    share = result["reading_costs"]
    return (
        f"; reading the first rows costs `auto` {cell(share, '.1%')} of the run's work, and *at equal cost* `all` is "
        "trained for so many steps more"
        if share
        else ""
    )


def _changed(registered: Mapping[str, Any]) -> list[str]:
    """Which registered files read otherwise today."""
    files = registered["code_changed"]
    if not files:
        return []
    named = ", ".join(f"`{file}`" for file in files)
    return [
        *paragraph(
            f"Of the files whose digests were registered {named} read otherwise today: what was judged is the code at "
            "that commit."
        ),
        "",
    ]


def _judged(result: Mapping[str, Any]) -> list[str]:
    """How many cases, and what they come to."""
    short = [
        f"{case_name(case)} has {case['rows']} of {registered} rows"
        for case in result["cases"]
        if case["rows"] < (registered := case["registered_rows"])
    ]
    clustered = [f"{case_name(case)}: {case['clusters']}" for case in result["cases"] if case["clusters"]]
    return [
        *paragraph(
            f"Judged so far: {len(result['cases'])} of {result['registered_cases']} registered cases. "
            + (f"{'; '.join(short)}: its file has no more. " if short else "")
            + (f"Fewer prompts than rows: {', '.join(clustered)}." if clustered else "")
        ),
        "",
        *_pooled_words(result),
    ]


def _tables(result: Mapping[str, Any]) -> list[str]:
    """Cases, losses of all arms, `auto` against each, and what rates are worth."""
    costs = bool(result["reading_costs"])
    rows = (
        (
            f"{case_name(case)} {case['budget'].removeprefix('like=')}{'' if case['unseen'] else ' (chosen on)'}",
            case["steps"],
            interval(case["auto_minus_all"], "+.4f"),
            *([interval(case["auto_minus_all_at_equal_cost"], "+.4f")] if costs else []),
            steps(case["steps_saved"], *_reach(case)),
            interval(case["share_lost"], ".0%"),
            case["verdict"],
        )
        for case in result["cases"]
    )
    equal = ["at equal cost"] if costs else []
    lines = table(["case", "steps", "auto − all", *equal, "steps saved", "share lost", "verdict"], rows)
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


def _reach(case: Mapping[str, Any]) -> tuple[float, float]:
    """The most and the least steps that the curve of the reference can say."""
    lengths = [int(length) for length in case["curve_of_all"]]
    return max(lengths) - case["steps"], min(lengths) / 2 - case["steps"]


def _pooled_words(result: Mapping[str, Any]) -> list[str]:
    pooled = result["pooled_unseen"]
    if pooled is None:
        return []
    cost, rest = pooled["at_equal_cost"], pooled["auto_minus_all_without_the_largest"]
    words = [
        f"**Unseen cases: better than `all` in {pooled['better']} of {pooled['cases']}, worse in {pooled['worse']}.**",
        f"In the mean over cases auto − all is {interval(pooled['auto_minus_all'], '+.4f')} nats per token, in the "
        f"median {cell(pooled['auto_minus_all_median'], '+.4f')}, without the case of the largest gain "
        f"{cell(rest, '+.4f')}.",
    ]
    if result["reading_costs"]:
        words.append(
            f"At equal cost: better in {cost['better']}, worse in {cost['worse']}, mean {cell(cost['mean'], '+.4f')}."
        )
    return [*paragraph(" ".join([*words, *_pooled_share(result)])), *_aims(pooled), ""]


def _aims(pooled: Mapping[str, Any]) -> list[str]:
    """What was to be reached, and what was."""
    share, static = pooled["share_lost"], pooled["best_static"]
    rows = [
        (
            "better than `all` in two thirds of the cases, worse in none",
            f"{pooled['better']} of {pooled['cases']}, worse in {pooled['worse']}",
            pooled["better"] >= 2 / 3 * pooled["cases"] and not pooled["worse"],
        ),
        (
            "share lost ≤ 5 %, its upper end ≤ 10 %",
            interval(share, ".0%"),
            share["value"] is not None and share["value"] <= 0.05 and share["high"] <= 0.1,
        ),
        (
            f"no more than {static['delta']:g} nats above the best static arm in three quarters",
            f"{static['noninferior']} of {static['cases']}",
            static["noninferior"] >= 0.75 * static["cases"],
        ),
    ]
    if all(arm in pooled["auto_against"] for arm in PUBLISHED):
        better, worse, cases = _counts(pooled, PUBLISHED)
        rows.append(
            (
                "better than published rules that move in three quarters, worse in none",
                f"{better} of {cases} comparisons, worse in {worse}",
                better >= 0.75 * cases and not worse,
            )
        )
    return table(
        ["to be reached", "found", ""],
        ((aim, found, "reached" if met else "missed") for aim, found, met in rows),
    )


def _counts(pooled: Mapping[str, Any], arms: Sequence[str]) -> tuple[int, int, int]:
    """Comparisons of `auto` with these arms in which it is better and worse, and how many there are."""
    better, worse, cases = (
        sum(pooled["auto_against"][arm][count] for arm in arms) for count in ("better", "worse", "cases")
    )
    return better, worse, cases


def _earlier(figure: Mapping[str, Any]) -> str:
    """What an earlier registration came to."""
    return (
        f"Registered before (commit `{figure['commit'][:12]}`, {figure['policy']}): better in {figure['better']} of "
        f"{figure['cases']} cases, worse in {figure['worse']} "
        f"([results](../../benchmarks/results/earlier/{figure['results']})).\n"
    )


def _pooled_share(result: Mapping[str, Any]) -> list[str]:
    pooled = result["pooled_unseen"]
    everywhere = [REFERENCE, *pooled["by_arm"]]
    missing = [arm for arm in result["registered_arms"] if arm not in everywhere]
    best = f"The best is that of {', '.join(everywhere)}."
    if missing:
        best += f" Registered and not trained in all cases: {', '.join(missing)}."
    if pooled["share_lost"]["value"] is None:
        return [
            "No share is lost of anything: of the arms trained so far none beats `all` by more than noise.",
            best,
        ]
    return [
        f"Share lost, pooled: {interval(pooled['share_lost'], '.0%')}. Noise floor: "
        f"{cell(pooled['noise_floor'], '.0%')}, what the best arm, chosen on other seeds, loses to the luckiest.",
        best,
        *_crossed(pooled.get("chosen_on_other_cases")),
    ]


def _crossed(chosen: Mapping[str, Any] | None) -> list[str]:
    """What an arm chosen on the other cases loses."""
    if chosen is None or chosen["value"] is None:
        return []
    named = ", ".join(f"`{arm}` in {times}" for arm, times in Counter(chosen["arms"]).most_common())
    return [
        f"Who follows the arm that lost least on the other cases ({named}) loses {interval(chosen, '.0%')}."
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
        "*Best static in hindsight*: the arm of fixed ranks with the lowest loss on the tuning seeds, compared on the "
        f"fresh ones. `auto` is shown to be no more than {found['delta']:g} nats above it in {found['noninferior']} of "
        f"{found['cases']} cases, and worse in {found['worse']}."
    )
    lines += ["", "| auto − … | mean over cases | better in | worse in | of |", "|---|---|---|---|---|"]
    for arm, each in pooled["auto_against"].items():
        cells = (arm, interval(each["mean"], "+.4f"), each["better"], each["worse"], each["cases"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "| case | best static in hindsight | auto − it |", "|---|---|---|"]
    for case in result["cases"]:
        chosen = case["best_static"]
        lines.append(f"| {case_name(case)} | {chosen['arm']} | {interval(chosen['auto_minus'], '+.4f')} |")
    return lines


def _published(pooled: Mapping[str, Any]) -> str:
    """In how many comparisons with published rules `auto` is better and worse; nothing of those not trained yet."""
    said = ""
    for when, rules in (("move while training", PUBLISHED), ("decide before training", tuple(RULES))):
        arms = [arm for arm in rules if arm in pooled["auto_against"]]
        if arms:
            better, worse, cases = _counts(pooled, arms)
            said += (
                f"Against rules as published that {when} ({', '.join(arms)}), `auto` is better in {better} of "
                f"{cases} comparisons and worse in {worse}. "
            )
    return said
