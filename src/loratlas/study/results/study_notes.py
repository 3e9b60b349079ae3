"""What a reader of a study has to know, in sentences: budgets, reach, remarks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loratlas.dynamic.policies.known_policies import DEFAULT
from loratlas.models.task import CAUSAL
from loratlas.scan.advice import DECIDED_BEFORE, auto_record, track_record
from loratlas.study.execution.schedule_state import Schedule
from loratlas.study.inputs.match_budgets import moving_of
from loratlas.study.spec.rates_and_seeds import FEWEST_NEAR, candidates
from loratlas.study.spec.study_spec import StudySpec

_QUANTITIES = {"params": "trainable parameters", "time": "step time", "memory": "peak memory"}


def budget_sentence(arm: str, versus: str, arms: Mapping[str, Mapping[str, Any]], match: str) -> str:
    """The sentence on what both arms spent: whether it was matched, and what it was."""
    one, two = arms[arm], arms[versus]
    counts = f"{one['trainable']:,} trainable parameters against {two['trainable']:,}"
    matched = one["match"]
    if matched and matched["solved"]:
        off = f"{100 * abs(matched['relative']):.1f} %" if matched["relative"] else "exactly"
        within = "exactly" if off == "exactly" else f"to within {off}"
        return f"Both were given equal {_QUANTITIES[match]}, met {within} ({counts})."
    if one["trainable"] == two["trainable"]:
        return f"Both have {one['trainable']:,} trainable parameters."
    return f"Their budgets differ: {counts}."


def reach(spec: StudySpec, about: Mapping[str, Any]) -> str:
    size = about["base"]["parameters"]
    millions = f"{size / 1e9:.1f} billion" if size >= 1e9 else f"{size / 1e6:.1f} million"
    return (
        f"of {about['data']['evaluation']['source']}, for {spec.model} ({millions} parameters) trained "
        f"{spec.steps:,} steps of {spec.batch_size} rows of {spec.data.train}"
    )


def study_notes(spec: StudySpec, about: Mapping[str, Any], state: Schedule) -> list[str]:
    notes = [
        "The findings are about this base, this task, this budget and this size; "
        "a small base says nothing about a large one."
    ]
    if spec.demonstration:
        notes.append(
            f"This is a demonstration: {len(spec.learning_rates)} learning rates, {spec.tuning.seeds} tuning "
            f"seed{'s' * (spec.tuning.seeds > 1)}, {spec.steps} steps. It shows how a study reads, "
            "and is too short to settle a question."
        )
    if spec.protocol == 1:
        notes.append(
            "Superseded: this study was run by the first edition of the method, see docs/method/statistics.md."
        )
    listed = spec.learning_rates if spec.protocol == 1 else candidates(spec)
    if spec.protocol == 2 and not spec.demonstration and spec.tuning.seeds < FEWEST_NEAR:
        notes.append(
            f"{FEWEST_NEAR} tuning seeds were trained near each optimum, where the study's file asks for "
            f"{spec.tuning.seeds}: fewer do not settle a rate."
        )
    if len(state.rates) > len(listed):
        added = [f"{rate:g}" for rate in state.rates if rate not in listed]
        notes.append(f"An optimum lay at the edge of the grid: all arms also tried {', '.join(added)}.")
    if "scan" in about:
        notes.append(track_record(decided_by(about["scan"])))
    for name in about.get("moving", {}):
        arm = spec.arms[name]
        due = moving_of(arm).schedule.steps(spec.steps)
        later = f", and {len(due) - 1} times later" if due[1:] else ""
        notes.append(
            f"{name} places its adapters inside its runs: it begins on all linear layers and decides after {due[0]} of "
            f"{spec.steps} steps{later} by {arm.signal or DEFAULT} where they go on. No step is added; its runs "
            "train alone, not in a fleet."
        )
    signals = [spec.arms[name].signal or DEFAULT for name in about.get("moving", {})]
    notes += [auto_record(None if signal == DEFAULT else signal) for signal in dict.fromkeys(signals)]
    for name, match in about["matches"].items():
        if spec.match != "none" and match and not match["solved"]:
            notes.append(f"{name} names its ranks, which were used: its budget is not matched.")
    for name in ("train", "evaluation"):
        counts = about["data"][name]
        if counts["cut"] or counts["dropped"]:
            notes.append(
                f"Of the rows of {counts['source']}, {counts['cut']:,} were cut {_where_cut(about)} to "
                f"{spec.max_length} tokens and {counts['dropped']:,} were dropped."
            )
    if spec.base_dropout:
        notes.append(
            "The base's own dropout was on, so that its noise is not shared by the arms of one seed."
        )
    return notes


def scan_record(scan: Mapping[str, Any]) -> dict[str, Any]:
    """A study's scan, with what decided and how often rows were read, also where that was not written down."""
    return {**scan, "by": decided_by(scan), "visits": scan.get("visits", scan["rows"])}


def decided_by(scan: Mapping[str, Any]) -> str:
    """The score that decided a scan; `DECIDED_BEFORE` of those that were written down before they said so.

    >>> decided_by({"by": "gradient"}), decided_by({"signals": [{"name": "probe_energy"}, {"name": "probe_yield"}]})
    ('gradient', 'probe_yield')
    >>> decided_by({"signals": [{"name": "gradient"}, {"name": "gradient_energy"}]})
    'gradient'
    """
    names = [signal["name"] for signal in scan.get("signals", ())]
    return scan.get("by") or (DECIDED_BEFORE if DECIDED_BEFORE in names or not names else names[0])


def _where_cut(about: Mapping[str, Any]) -> str:
    causal = (about.get("task") or {"name": CAUSAL})["name"] == CAUSAL
    return "from the prompt's left" if causal else "at their end"
