"""What placements by a policy or a score were worth where they were tried: said beside every plan that they make.

Only cases that nothing of them was chosen on count. ``judged.json`` is written by
``python -m benchmarks.dynamic judge``. The share is what a plan does not go of the way from `all` to the best plan that
was trained: 0 is the best, 1 is `all` itself, above 1 is worse than `all`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from loratlas.signals.registry import TRIAL_COLUMNS

DECIDES = "probe_energy"
"""The column that places adapters unless another is asked for."""

DECIDED_BEFORE = "probe_yield"
"""The column that decided scans whose files do not say which: they were written while this one was `DECIDES`."""

JUDGED = Path(__file__).with_name("judged.json")
"""``inside``: of ``auto``, which places inside the run, pooled, and of policies where adapters begin as PEFT begins
them (``signals``), on held-out cases of small bases; the default policy on real ones (``real``); ``scans``: of scores,
by column."""


@cache
def judged() -> Mapping[str, Any]:
    """What the bench has found so far."""
    return json.loads(JUDGED.read_text(encoding="utf-8"))


def auto_record(signal: str | None = None) -> str:
    """What placement inside the run was worth against `all` at the same steps and parameters, in a sentence.

    Args:
        signal: the policy that decides where adapters begin as PEFT begins them. None: ``auto`` as a whole, where they
            begin along their inputs.

    Example:
        >>> auto_record()[:35]
        'Measured against `all` at equal ste'
        >>> auto_record("attention")
        'What placement by attention inside a run is worth was not measured on held-out cases; a study tells.'
    """
    found = judged()["inside"]
    moves = found["signals"]
    if signal is not None:
        return (
            f"What placement by {signal} inside a run is worth was not measured on held-out cases; a study tells."
            if signal not in moves
            else f"Measured against `all` at equal steps and parameters: moves by {signal}, adapters begun as PEFT "
            f"begins them, were {_counts(moves[signal])} held-out cases of small bases, {_mean(moves[signal]['mean'])} "
            f"in the mean.{_on_real_bases(found['real'], signal)} A study compares both on your rows."
        )
    cases, alone = found["pooled"], moves.get("weighted")
    if cases is None:
        return (
            "How well placement inside the run works was not measured yet; compare it with `all` in a study."
        )
    share, apart = cases["share_lost"], ""
    if share["value"] is not None:
        ends = f"{_percent(share['low'])} to {_percent(share['high'])}"
        apart = f", {_percent(share['value'])} ({ends}) lost of what `all` loses against the best arm"
    if alone:
        apart += f". Moves alone, as where adapters begin as PEFT begins them: {_counts(alone)}"
    return (
        "Measured against `all` at equal steps and parameters, adapters begun along their inputs: "
        f"{_counts(cases)} held-out cases of small bases; {_mean(cases['mean'])} in the mean, "
        f"{cases['steps_saved']:.0f} steps saved in the median{apart}. A study compares both on your rows."
    )


def _counts(found: Mapping[str, Any]) -> str:
    again = found.get("finer")
    finer = f" ({again['better']} and {again['worse']} with rates tuned finer)" if again else ""
    return f"better in {found['better']}, worse in {found['worse']} of {found['cases']}{finer}"


def _on_real_bases(found: Mapping[str, Any], signal: str) -> str:
    """What the policy was worth on real bases, in a sentence; empty where it was not tried."""
    if found["signal"] != signal or not found["cases"]:
        return ""
    told = (
        f"{case['base']} {case['task']} {case['budget']}, {case['steps']} steps {_ends(case['minus_all'])}"
        for case in found["cases"]
    )
    return f" On real bases, each at a rate of its own, one or two seeds: {'; '.join(told)}."


def _ends(found: Mapping[str, Any]) -> str:
    return f"{found['value']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"


def _mean(found: Mapping[str, Any]) -> str:
    return f"{_ends(found)} nats per token"


TRIAL_LR = 1e-2
"""Learning rate of a scan's trials. The run's is not known to a scan; what trials at another say was not measured."""

LENGTHS: Mapping[int, Mapping[str, tuple[float, float]]] = {
    80: {"probe_energy": (3.76, 2.16), "probe_yield": (3.45, 2.05)},
    40: {"probe_energy": (3.67, 2.07), "probe_yield": (3.46, 2.30)},
    20: {"probe_energy": (3.84, 2.19), "probe_yield": (3.65, 2.25)},
}
"""Steps of a trial → losses that plans by a column ended at, on the embedded tasks retrieval and facts."""


def about_length(steps: int, by: str = DECIDES) -> str | None:
    """What is known of trials shorter than usual, in a sentence; None for trials of the usual length.

    Args:
        steps: of a trial.
        by: the column that places.

    >>> about_length(80)
    >>> about_length(40)[:47]
    'Trials of 40 steps instead of 80 give other pla'
    """
    usual = max(LENGTHS)
    if steps >= usual:
        return None
    measured = min((length for length in LENGTHS if length >= steps), default=usual)
    by = by if by in LENGTHS[usual] else DECIDES
    a, b = LENGTHS[measured][by]
    c, d = LENGTHS[usual][by]
    return (
        f"Trials of {steps} steps instead of {usual} give other plans: on two embedded tasks plans by {by} after "
        f"{measured} steps ended at {a:.2f} and {b:.2f} nats, after {usual} at {c:.2f} and {d:.2f} "
        f"(--trial-steps {usual})."
    )


def track_record(by: str) -> str:
    """What plans by a scan's score have lost, in a sentence or a few.

    Args:
        by: the column that placed.

    Example:
        >>> track_record("probe_energy")[:42]
        'Measured by training, on 3 held-out cases:'
    """
    scans = judged()["scans"]
    columns, third, seen = scans["columns"], scans["third"], scans["seen"]
    if by not in columns:
        return f"What plans by {by} lose was not measured on held-out cases."
    lost, to_all = columns[by], third["minus_all"].get(by)
    held_out = len(scans["cases"]) + (to_all is not None)
    said = (
        f"Measured by training, on {held_out} held-out cases: plans by {by} lost {_share(lost)} of what the same rank "
        f"everywhere loses against the best plan ({', '.join(scans['cases'])})"
    )
    if to_all is not None:
        where = f"{third['case']}, {third['plans']} plans"
        said += f", and against the same rank everywhere ended at {_nats(to_all, where)}"
    said += "."
    if by in seen["columns"]:
        lost = seen["columns"][by]
        said += (
            f" On the {seen['cases']} cases by which {seen['chose']} was chosen they lost {_share(lost)}, and ended at "
            f"worst at {_nats(lost['worst'], lost['worst']['case'])}."
        )
    if by == DECIDES:
        said += (
            f" {by} decides because it lost less on the held-out cases than {seen['chose']}, which lost "
            f"{_share(columns[seen['chose']])} there."
        )
    if by in TRIAL_COLUMNS:
        said += f" Its trials train at a learning rate of {TRIAL_LR:g}, whatever the run's is."
    return said + " The scan's own steps are not counted; other models and tasks may differ."


def _share(lost: Mapping[str, Any]) -> str:
    return f"{_percent(lost['value'])} ({round(100 * lost['low'])} to {_percent(lost['high'])})"


def _percent(share: float) -> str:
    return f"{round(100 * share)} %"


def _nats(to_all: Mapping[str, Any], where: str) -> str:
    """A difference to the same rank everywhere."""
    return f"{to_all['value']:+.3f} nats per token ({to_all['low']:+.3f} to {to_all['high']:+.3f}; {where})"
