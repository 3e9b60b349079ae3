"""Where adapters begin, registered by itself: `all` begun along its inputs against `all` begun as LoRA begins it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.dynamic.arms import REFERENCE
from benchmarks.dynamic.judging.judge import (
    after_more_steps,
    difference,
    mean_difference,
    steps_saved,
    tally,
    verdict,
)
from benchmarks.dynamic.judging.placement import fresh_losses
from benchmarks.dynamic.preregistration import Preregistered
from benchmarks.dynamic.queue import best_rate, tuned
from benchmarks.dynamic.records import read_records
from benchmarks.dynamic.work import tokens_of
from loratlas.training.input_start import SHARE

BEGUN = "begun"

COST = SHARE / 3
"""Steps that reading the first rows costs, as a share of the run's: a forward pass is a third of a step's work."""


def judged_start(registered: Preregistered, folder: Path) -> dict[str, Any] | None:
    """Every case that is whole, as plain data; None before the first.

    Args:
        registered: the question. folder: of the cases' folders of records.
    """
    cases, losses = [], []
    for case, _ in registered.cases():
        if (tokens := tokens_of(folder / case.name)) is None:
            continue
        protocol, records = registered.protocol(case, [BEGUN]), read_records(folder / case.name)
        steps, found = protocol.lengths[-1], fresh_losses(protocol, records, tokens)
        if found is None or BEGUN not in found.losses:
            continue
        losses.append(found)
        apart = difference(found, BEGUN)
        cases.append(
            {
                "base": case.base,
                "task": case.task,
                "budget": case.budget,
                "steps": steps,
                "loss_of_all": round(float(found.by_seed(REFERENCE).mean()), 5),
                "minus_all": apart.to_json(),
                "minus_all_after_its_cost": round(after_more_steps(found, BEGUN, COST * steps), 5),
                "steps_saved": steps_saved(found, BEGUN).to_json(),
                "verdict": verdict(apart),
                "rates": {
                    arm: best_rate(tuned(records, arm, steps, tokens, 1)) for arm in (REFERENCE, BEGUN)
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
            "mean": mean_difference(losses, BEGUN).to_json(),
            **tally([difference(one, BEGUN) for one in losses]),
        },
    }
