"""Arms that were added after the registered runs had been read: tuned and judged alike, counted nowhere else.

``gora_start``: the ranks of `gora`, and its start along the gradient. ``all_eva``: the ranks of `all`, and EVA's start
along the inputs: is it EVA's ranks or where its adapters begin? They train on the seeds of their case, their
rates begin around the reference's best one, and their records lie in a folder of their own, so that no registered
figure changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.dynamic.arms import REFERENCE
from benchmarks.dynamic.judging.judge import CaseLosses, Interval, difference, tally
from benchmarks.dynamic.queue import Job, Protocol, best_rate, next_job, tuned
from benchmarks.dynamic.records import Record

ADDED: Mapping[str, str] = {"gora_start": "gora", "all_eva": "all"}
"""Arm → the registered one that has the same ranks."""


def next_added(
    protocol: Protocol, registered: Sequence[Record], added: Sequence[Record], tokens: np.ndarray
) -> Job | None:
    """The first run that is missing; nothing before the reference was trained."""
    if not tuned(registered, REFERENCE, protocol.tuning_lengths[-1], tokens, protocol.tuning_seeds):
        return None
    job = next_job(protocol, [*registered, *added], tokens)
    return job if job is None or job.arm in ADDED else None


def added_arms(losses: CaseLosses, added: Sequence[Record], tokens: np.ndarray) -> dict[str, Any]:
    """What a case says of its added arms, as plain data.

    Args:
        losses: of registered and added arms. added: records of these. tokens: of each held-out row [N].
    """
    return {
        arm: {
            "loss": round(float(losses.by_seed(arm).mean()), 5),
            "rate": best_rate(tuned(added, arm, losses.steps, tokens, 1)),
            "minus_all": difference(losses, arm).to_json(),
            "minus_same_ranks": difference(losses, arm, same).to_json(),
            "auto_minus": difference(losses, "auto", arm).to_json(),
        }
        for arm, same in ADDED.items()
        if arm in losses.losses and same in losses.losses
    }


def counted(cases: Sequence[Mapping[str, Any]], versus: str) -> dict[str, dict[str, int]]:
    """Arm → in how many cases one of its differences is below and above 0."""
    return {
        arm: tally([Interval(**case["added"][arm][versus]) for case in cases if arm in (case["added"] or {})])
        for arm in ADDED
    }
