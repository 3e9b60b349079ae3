"""A step over the frozen base's floor: forward, backward, clipping, AdamW, in bfloat16, eager, on each base.

The floor has the same packed batch and the same loss; its forward pass is transformers' own, so that whatever this
project saves within the base's layers counts for it. PEFT's layers run under the same loss, which is kinder to them
than `Trainer`.
"""

from __future__ import annotations

import gc
from typing import Any

from benchmarks.common.bases import MEDIUM, MINI, SMALL, adapted, alpaca, base, made_up
from benchmarks.common.timing import block, interleaved, ratios, seconds
from benchmarks.peers import ours
from benchmarks.peers.floor import Floor, PeftStep
from benchmarks.peers.outcome import Schedule
from loratlas.placement.plan import place
from loratlas.training.microbatches import microbatches

PLACEMENT = "all:8"
SKIP = 2
"""Steps of our own loop that are left out: memory is watched in the first, and the second follows it."""

TARGETS = {0.0: 1.12, 0.05: 1.20}


def measure(*, rounds: int, steps: int = 5) -> dict[str, Any]:
    """Per base and dropout: ours and PEFT's over the floor, and ours over PEFT's."""
    cases = []
    for name, rows in ((MINI, 16), (SMALL, 8), (MEDIUM, 4)):
        data = alpaca(name, rows=rows) if name == MINI else made_up(name, rows=rows, length=128)
        (batch,) = microbatches(data, range(len(data)), packed=True)
        for dropout, target in TARGETS.items():
            frozen = base(name, "bfloat16")
            floor = Floor(frozen, batch, place(frozen, PLACEMENT))
            peft = PeftStep(adapted(name, "bfloat16", placement=PLACEMENT, dropout=dropout), batch)
            own = adapted(name, "bfloat16", placement=PLACEMENT, dropout=dropout)
            schedule = Schedule(batch=len(data), dropout=dropout)

            def ours_once(own: Any = own, data: Any = data, schedule: Schedule = schedule) -> Any:
                return ours.step_time(own, data, schedule, dtype="bfloat16", skip=SKIP, steps=steps)

            runs = interleaved(
                {
                    "floor": lambda floor=floor: block(floor.step, steps=steps),
                    "peft": lambda peft=peft: block(peft.step, steps=steps),
                    "ours": ours_once,
                },
                rounds=rounds + 1,
            )
            kept = {side: found[1:] for side, found in runs.items()}  # the first round warms up
            cases.append(
                {
                    "base": name,
                    "tokens": batch.tokens,
                    "labelled": batch.labelled,
                    "dropout": dropout,
                    "target": target,
                    "ours_over_floor": ratios(kept["ours"], kept["floor"]),
                    "peft_over_floor": ratios(kept["peft"], kept["floor"]),
                    "ours_over_peft": ratios(kept["ours"], kept["peft"]),
                    "seconds": {side: seconds(found) for side, found in kept.items()},
                }
            )
            del frozen, floor, peft, own
            gc.collect()
    return {"placement": PLACEMENT, "dtype": "bfloat16", "cases": cases}
