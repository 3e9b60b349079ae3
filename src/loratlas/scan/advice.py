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

DECIDES = "probe_yield"
"""The column that places adapters unless another is asked for."""

JUDGED = Path(__file__).with_name("judged.json")
"""``inside``: of ``auto``, which places inside the run, by case, and ``moves``: counts of the same where adapters begin
as PEFT begins them; ``scans``: of scores, by column."""


@cache
def judged() -> Mapping[str, Any]:
    """What the bench has found so far."""
    return json.loads(JUDGED.read_text(encoding="utf-8"))


def auto_record() -> str:
    """What ``auto`` was worth against `all` at the same steps, parameters and rows, in a sentence.

    Example:
        >>> auto_record()[:35]
        'Measured against `all` at equal ste'
    """
    inside = judged()["inside"]
    cases, moves = inside["cases"], inside["moves"]
    if not cases:
        return (
            "How well placement inside the run works was not measured yet; compare it with `all` in a study."
        )
    count = {verdict: sum(case["verdict"] == verdict for case in cases) for verdict in ("better", "worse")}
    ends = [min(cases, key=_difference), max(cases, key=_difference)]
    bounds = " and ".join(
        f"{_difference(case):+.3f} ({case['auto_minus_all']['low']:+.3f} to {case['auto_minus_all']['high']:+.3f}; "
        f"{case['name']})"
        for case in ends
    )
    again = moves["finer"]
    finer = f", with rates tuned finer in {again['better']} and {again['worse']}" if again else ""
    alone = (
        f" Moves alone, as where adapters begin as PEFT begins them: better in {moves['better']}, worse in "
        f"{moves['worse']} of {moves['cases']}{finer}."
        if moves["cases"]
        else ""
    )
    open_cases = len(cases) - count["better"] - count["worse"]
    return (
        f"Measured against `all` at equal steps and parameters, adapters begun along their inputs, on {len(cases)} "
        f"held-out cases of small bases: better in {count['better']}, worse in {count['worse']}, undetermined in "
        f"{open_cases}; between {bounds} nats per token.{alone} A study compares both on your rows."
    )


LENGTHS: Mapping[int, tuple[float, float]] = {80: (3.45, 2.05), 40: (3.46, 2.30), 20: (3.65, 2.25)}
"""Steps of a trial → losses that plans by its scores ended at, on the embedded tasks retrieval and facts. Shorter
trials have not seen what overshoots."""


def about_length(steps: int) -> str | None:
    """What trials shorter than usual are worth, in a sentence; None for trials of the usual length.

    Args:
        steps: of a trial.

    >>> about_length(80)
    >>> about_length(40)[:47]
    'Trials of 40 steps instead of 80 give worse pla'
    """
    usual = max(LENGTHS)
    if steps >= usual:
        return None
    measured = min((length for length in LENGTHS if length >= steps), default=usual)
    a, b = LENGTHS[measured]
    c, d = LENGTHS[usual]
    return (
        f"Trials of {steps} steps instead of {usual} give worse plans: on two embedded tasks plans after {measured} "
        f"steps ended at {a:.2f} and {b:.2f} nats, after {usual} at {c:.2f} and {d:.2f} (--trial-steps {usual})."
    )


def track_record(by: str) -> str:
    """What plans by a scan's score have lost, in a sentence.

    Args:
        by: the column that placed.

    Example:
        >>> track_record("probe_yield")[:36]
        'Measured by training, on 2 held-out '
    """
    scans = judged()["scans"]
    if by not in scans["columns"]:
        return f"What plans by {by} lose was not measured on held-out cases."
    lost = scans["columns"][by]
    where = f"{len(scans['cases'])} held-out cases ({', '.join(scans['cases'])})"
    interval = f"{_percent(lost['value'])} ({_percent(lost['low'])} to {_percent(lost['high'])})"
    return (
        f"Measured by training, on {where}: plans by {by} lost {interval} of what the same rank everywhere loses "
        "against the best plan. The scan's own steps are not counted; other models and tasks may differ."
    )


def _difference(case: Mapping[str, Any]) -> float:
    return float(case["auto_minus_all"]["value"])


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
