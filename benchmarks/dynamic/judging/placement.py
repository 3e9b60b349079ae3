"""All judged cases as one result: ``placement.json``, and the page that is written from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dynamic.added import added_arms
from benchmarks.dynamic.arms import REFERENCE
from benchmarks.dynamic.finer import compared, next_finer, refined
from benchmarks.dynamic.judging.against import against, best_static, in_hindsight
from benchmarks.dynamic.judging.judge import (
    CaseLosses,
    Interval,
    at_equal_cost,
    chosen_elsewhere,
    difference,
    noise_floor,
    share_lost,
    steps_saved,
    tally,
    verdict,
)
from benchmarks.dynamic.judging.picture import pictures
from benchmarks.dynamic.judging.scans import said, scans
from benchmarks.dynamic.preregistration import Preregistered, code_changed
from benchmarks.dynamic.queue import FIRST_FRESH, Protocol, best_rate, tuned
from benchmarks.dynamic.records import Record, read_records
from benchmarks.dynamic.sought import best_so_far, next_sought, sought_plan
from benchmarks.dynamic.work import HeldOut, held_out_of
from loratlas.dynamic.policies.known_policies import DEFAULT, POLICIES
from loratlas.training.input_start import SHARE
from loratlas.training.settings import EVA

AUTO = "auto"
MOVES = "moves"
"""`auto` as it is on real bases: adapters that begin as PEFT begins them, and move."""

FOLDERS = {
    "run": "placement",
    "finer": "placement_finer",
    "added": "placement_added",
    "sought": "placement_sought",
    "start": "placement_start",
    "auto": "placement_auto",
    "ranks": "placement_ranks",
}
"""What is trained → its folder of records."""

READING = SHARE / 3
"""Steps that reading the first rows costs, as a share of the run's: a forward pass is a third of a step's work."""

SCHEMA, VERSION = "loratlas.placement", 1


def losses_of(
    records: Sequence[Record], rows: HeldOut, steps: int, first_fresh: int, *, least: int = 2
) -> CaseLosses | None:
    """The fresh seeds that all arms share; None where the reference has fewer than ``least``.

    An arm that has fewer seeds than the reference is left out as unfinished. A run that diverged has an
    infinite loss, so that its arm cannot win.
    """
    fresh = [record for record in records if record.seed >= first_fresh]
    seeds = sorted({record.seed for record in fresh if record.arm == REFERENCE})
    if len(seeds) < least:
        return None
    losses: dict[str, np.ndarray] = {}
    for arm in dict.fromkeys(record.arm for record in fresh):
        by_seed = {record.seed: record for record in fresh if record.arm == arm}
        if all(seed in by_seed for seed in seeds):
            losses[arm] = np.stack([_at(by_seed[seed], steps, rows.tokens) for seed in seeds])
    reference = {record.seed: record for record in fresh if record.arm == REFERENCE}
    shared = [
        length for length in reference[seeds[0]].lengths if all(length in reference[s].lengths for s in seeds)
    ]
    curve = {length: np.stack([reference[seed].lengths[length] for seed in seeds]) for length in shared}
    return CaseLosses(losses=losses, tokens=rows.tokens, steps=steps, curve=curve, clusters=rows.clusters)


def _at(record: Record, steps: int, tokens: np.ndarray) -> np.ndarray:
    return record.lengths.get(steps, np.full(len(tokens), np.inf))


def assemble(registered: Preregistered, results: Path, *, trained: str = "run") -> dict[str, Any]:
    """Everything that is judged so far, as plain data.

    Args:
        registered: what is judged.
        results: folder of the folders of records, `FOLDERS` and ``real_base``.
        trained: which of these has the registered runs.
    """
    cases, judged, unseen = [], [], []
    reading = READING if registered.content["policies"].get(AUTO, {}).get("init") == EVA else 0.0
    for case, is_unseen in registered.cases():
        folder = results / FOLDERS[trained] / case.name
        if (rows := held_out_of(folder)) is None:
            continue
        protocol, records = registered.protocol(case, []), read_records(folder)
        losses = fresh_losses(protocol, records, rows)
        if losses is None or AUTO not in losses.losses:
            continue
        beside = {
            what: told(protocol, records, read_records(results / FOLDERS[what] / case.name), rows)
            for what, told in (("finer", _finer), ("added", _added), ("sought", _sought))
        }
        cases.append(_case(case, is_unseen, losses, records, reading) | beside)
        judged.append(losses)
        unseen.append(is_unseen)
    chosen = [losses for losses, is_unseen in zip(judged, unseen, strict=True) if is_unseen]
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "preregistered": {
            "digest": registered.digest,
            "commit": registered.commit,
            "code_changed": code_changed(registered),
        },
        "earlier": registered.content.get("earlier", []),
        "reading_costs": round(reading, 5),
        "registered_arms": [arm for group in registered.content["arms"] for arm in group],
        "cases": cases,
        "registered_cases": len(registered.cases()),
        "pooled_unseen": _pooled(chosen) | _of_cases(cases) if chosen else None,
        "scans": scans(),
        "real_base": pictures(results / "real_base"),
    }


def summary(result: Mapping[str, Any], moves: Mapping[str, Any]) -> dict[str, Any]:
    """What the product says of its placements: unseen cases only, as `loratlas.scan.advice` reads it.

    Args:
        result: of the newest registration. moves: of the one in which `auto` began as PEFT begins.
    """
    pooled, alone = result["pooled_unseen"], moves["pooled_unseen"]
    counted = ("better", "worse", "cases")
    of_auto = pooled and {
        **{count: pooled[count] for count in counted},
        "mean": pooled["auto_minus_all"],
        "steps_saved": pooled["steps_saved_median"],
        "share_lost": pooled["share_lost"],
    }
    signals = {arm: found for arm, found in (alone or {}).get("against_all", {}).items() if arm in POLICIES}
    if alone:  # `auto` there is its policy, begun as the others are
        signals[DEFAULT] = {**alone["against_all"][AUTO], "finer": alone["finer"]}
    inside = {"pooled": of_auto, "signals": signals, "real": _on_real_bases(result["real_base"])}
    return {"inside": inside, "scans": said(result["scans"])}


def _on_real_bases(pictures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`auto` as it is on real bases against `all`, after the longest runs of fresh seeds."""
    cases = []
    for picture in pictures:
        fresh = [point for point in picture["points"] if point["fresh"] and point["arm"] == MOVES]
        if fresh:
            last = max(fresh, key=lambda point: point["steps"])
            cases.append(
                {
                    "base": picture["base"].split(":")[-1],
                    "task": picture["task"],
                    "budget": picture["budget"].removeprefix("like="),
                    **{name: last[name] for name in ("steps", "seeds", "minus_all")},
                }
            )
    return {"signal": DEFAULT, "cases": cases}


def _of_cases(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is counted over the unseen cases as they were told, rather than over their losses."""
    known = [case for case in cases if case["unseen"]]
    hindsight = [Interval(**case["best_static"]["auto_minus"]) for case in known]
    at_cost = [Interval(**case["auto_minus_all_at_equal_cost"]) for case in known]
    values = sorted(case["auto_minus_all"]["value"] for case in known)
    return {
        "best_static": in_hindsight(hindsight),
        "finer": read_again(cases),
        "at_equal_cost": {"mean": round(float(np.mean([one.value for one in at_cost])), 5), **tally(at_cost)},
        "auto_minus_all_median": round(float(np.median(values)), 5),
        "auto_minus_all_without_the_largest": round(float(np.mean(values[1:])), 5) if values[1:] else None,
        "steps_saved_median": round(float(np.median([case["steps_saved"]["value"] for case in known])), 1),
    }


def read_again(cases: Sequence[Mapping[str, Any]]) -> dict[str, int] | None:
    """How often `auto` is better and worse at finer rates, of the unseen cases read so; None where none was."""
    auto = [case["finer"]["minus_all"]["auto"] for case in cases if case["unseen"] and case.get("finer")]
    return tally([Interval(**found) for found in auto]) if auto else None


def _case(
    case: Any, unseen: bool, losses: CaseLosses, records: Sequence[Record], reading: float
) -> dict[str, Any]:
    tokens = losses.tokens
    hindsight = best_static(records, losses.steps, tokens, list(losses.losses))
    to_all = difference(losses, AUTO)
    return {
        "base": case.base,
        "task": case.task,
        "budget": case.budget,
        "steps": losses.steps,
        "unseen": unseen,
        "seeds": losses.seeds,
        "rows": len(tokens),
        "registered_rows": case.rows.held_out,
        "clusters": None if losses.clusters is None else len(np.unique(losses.clusters)),
        "auto_minus_all": to_all.to_json(),
        "auto_minus_all_at_equal_cost": at_equal_cost(losses, AUTO, reading * losses.steps).to_json(),
        "steps_saved": steps_saved(losses, AUTO).to_json(),
        "share_lost": share_lost([losses], [AUTO]).to_json(),
        "verdict": verdict(to_all),
        "best_static": {"arm": hindsight, "auto_minus": difference(losses, AUTO, hindsight).to_json()},
        "arms": {
            arm: {
                "loss": round(float(losses.by_seed(arm).mean()), 5),
                "by_seed": [round(float(x), 5) for x in losses.by_seed(arm)],
                "minus_all": difference(losses, arm).to_json() if arm != REFERENCE else None,
                "auto_minus": difference(losses, AUTO, arm).to_json() if arm != AUTO else None,
                "tuning": {f"{rate:g}": round(loss, 5) for rate, loss in curve.items()},
                "rate": best_rate(curve) if curve else None,
                "moves": sum(len(r.moves) for r in records if r.arm == arm and r.seed >= FIRST_FRESH),
            }
            for arm in losses.losses
            for curve in [tuned(records, arm, losses.steps, tokens, 1)]
        },
        "curve_of_all": {
            str(length): round(float(table.sum() / tokens.sum() / losses.seeds), 5)
            for length, table in losses.curve.items()
        },
    }


def _finer(
    protocol: Protocol, registered: Sequence[Record], finer: Sequence[Record], rows: HeldOut
) -> dict[str, Any] | None:
    """A case at finer rates; None before all of its runs are there."""
    if not finer or next_finer(protocol, registered, finer, rows.tokens) is not None:
        return None
    records = refined(registered, finer)
    losses = fresh_losses(protocol, records, rows)
    return None if losses is None else compared(losses, records)


def _added(
    protocol: Protocol, registered: Sequence[Record], more: Sequence[Record], rows: HeldOut
) -> dict[str, Any] | None:
    """A case's arms that were not registered; None before they were trained."""
    losses = fresh_losses(protocol, [*registered, *more], rows)
    return None if not more or losses is None else added_arms(losses, more, rows.tokens) or None


def _sought(
    protocol: Protocol, registered: Sequence[Record], tries: Sequence[Record], rows: HeldOut
) -> dict[str, Any] | None:
    """What a case's search for a better plan found; None before it has ended."""
    if not tries or next_sought(protocol, registered, tries, rows.tokens) is not None:
        return None
    best = best_so_far(registered, tries, protocol.tuning_lengths[-1], rows.tokens)
    losses = fresh_losses(protocol, [*registered, *tries], rows)
    return None if best is None or losses is None else sought_plan(losses, best)


def fresh_losses(protocol: Protocol, records: Sequence[Record], rows: HeldOut) -> CaseLosses | None:
    """`losses_of` at the judged length, of whole cases."""
    return losses_of(records, rows, protocol.lengths[-1], protocol.first_fresh, least=protocol.fresh_seeds)


def case_name(case: Mapping[str, Any]) -> str:
    """As tables call it."""
    return f"{case['base'].split(':')[-1].split('/')[-1]} {case['task']}"


def _pooled(cases: Sequence[CaseLosses]) -> dict[str, Any]:
    common = [arm for arm in cases[0].losses if all(arm in case.losses for case in cases)]
    rules = [arm for arm in common if arm != REFERENCE]
    auto_against = {arm: against(cases, AUTO, arm) for arm in common if arm != AUTO}
    to_all = auto_against[REFERENCE]
    pooled: dict[str, Any] = {
        "auto_minus_all": to_all["mean"],
        "share_lost": share_lost(cases, [AUTO] * len(cases)).to_json(),
        **{count: to_all[count] for count in ("better", "worse", "cases")},
        "noise_floor": _number(noise_floor(cases)),
        "by_arm": {arm: share_lost(cases, [arm] * len(cases)).to_json() for arm in rules},
        "auto_against": auto_against,
        "against_all": {arm: against(cases, arm, REFERENCE) for arm in rules},
    }
    if len(cases) > 1:
        crossed = chosen_elsewhere(cases, rules)
        pooled["chosen_on_other_cases"] = {"arms": crossed, **share_lost(cases, crossed).to_json()}
    return pooled


def _number(value: float) -> float | None:
    return round(value, 5) if np.isfinite(value) else None
