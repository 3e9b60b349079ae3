"""One arm that was registered by itself, against `all` begun as LoRA begins it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.dynamic.arms import REFERENCE
from benchmarks.dynamic.judging.judge import (
    at_equal_cost,
    difference,
    mean_difference,
    steps_saved,
    tally,
    verdict,
)
from benchmarks.dynamic.judging.placement import READING, fresh_losses
from benchmarks.dynamic.preregistration import Preregistered
from benchmarks.dynamic.queue import best_rate, tuned
from benchmarks.dynamic.records import read_records
from benchmarks.dynamic.work import held_out_of


def judged_alone(registered: Preregistered, folder: Path, arm: str) -> dict[str, Any] | None:
    """Every case that is whole, as plain data; None before the first.

    Args:
        registered: the question. folder: of the cases' folders of records. arm: that was registered.
    """
    cases, losses = [], []
    for case, _ in registered.cases():
        if (rows := held_out_of(folder / case.name)) is None:
            continue
        protocol, records = registered.protocol(case, [arm]), read_records(folder / case.name)
        steps = protocol.lengths[-1]
        found = fresh_losses(protocol, records, rows)
        if found is None or arm not in found.losses:
            continue
        losses.append(found)
        apart = difference(found, arm)
        cases.append(
            {
                "base": case.base,
                "task": case.task,
                "budget": case.budget,
                "steps": steps,
                "loss_of_all": round(float(found.by_seed(REFERENCE).mean()), 5),
                "minus_all": apart.to_json(),
                "minus_all_at_equal_cost": at_equal_cost(found, arm, READING * steps).to_json(),
                "steps_saved": steps_saved(found, arm).to_json(),
                "verdict": verdict(apart),
                "rates": {
                    each: best_rate(tuned(records, each, steps, rows.tokens, 1)) for each in (REFERENCE, arm)
                },
            }
        )
    if not cases:
        return None
    return {
        "preregistered": {"digest": registered.digest, "commit": registered.commit},
        "registered_cases": len(registered.cases()),
        "cases": cases,
        "pooled": {
            "mean": mean_difference(losses, arm).to_json(),
            **tally([difference(one, arm) for one in losses]),
        },
    }
