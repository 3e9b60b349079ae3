"""The allocator's peak of one run, beside PEFT + `Trainer` on the same rows at the same precision.

Both sides are watched by one tracker from the call that trains to its return: every allocation and free of torch's CPU
allocator, in order, on top of the storages that existed before (weights and adapters). Resident size says nothing
here: what an allocator keeps for later stays in it. Rows are Alpaca's, which `Trainer` pads to the longest of a batch.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.common.bases import MEDIUM, MINI, SMALL, adapted, alpaca
from benchmarks.peers import ours, trainer
from benchmarks.peers.outcome import Schedule
from loratlas.data.batches.batching import training_order
from loratlas.data.examples import Encoded
from loratlas.training.step.memory import allocations, resident_bytes

PLACEMENT = "all:8"
TARGET = 0.6
STEPS = 2
"""The second step finds the optimizer's moments there."""

RECIPES = {
    "float32": trainer.SHIPPED,
    "bfloat16": trainer.Recipe(name="bf16 weights", dtype="bfloat16"),
}


def peak(model: Any, train: Callable[[], Any]) -> int:
    """Bytes at the peak of a training call."""
    before = resident_bytes([*model.parameters(), *model.buffers()])
    gc.collect()
    with allocations() as changes:
        train()
    return before + int(np.cumsum(changes).max())


def measure(*, bases: tuple[str, ...] = (MINI, SMALL, MEDIUM)) -> dict[str, Any]:
    """Per base and precision: both peaks and their ratio."""
    cases = []
    for name, rows in ((MINI, 16), (SMALL, 16), (MEDIUM, 8)):
        if name not in bases:
            continue
        schedule = Schedule(batch=rows)
        data = alpaca(name, rows=rows * STEPS)
        order = training_order(len(data), steps=STEPS, batch_size=rows, seed=schedule.seed).reshape(-1)
        for dtype, recipe in RECIPES.items():
            cases.append({"base": name, **_case(name, data, order.tolist(), schedule, dtype, recipe)})
            gc.collect()
    return {"placement": PLACEMENT, "steps": STEPS, "cases": cases}


def _case(
    name: str, data: Encoded, order: list[int], schedule: Schedule, dtype: str, recipe: trainer.Recipe
) -> dict[str, Any]:
    model = adapted(name, dtype, placement=PLACEMENT)
    own = peak(model, lambda: ours.train(model, data, schedule, dtype=dtype, steps=STEPS))
    peer = adapted(name, dtype, placement=PLACEMENT)
    theirs = peak(peer, lambda: trainer.train(peer, data, order, schedule, recipe))
    return {
        "dtype": dtype,
        "rows": schedule.batch,
        "weights_bytes": resident_bytes(peer.parameters()),
        "ours_bytes": own,
        "trainer_bytes": theirs,
        "ratio": round(own / theirs, 4),
        "target": TARGET,
    }
