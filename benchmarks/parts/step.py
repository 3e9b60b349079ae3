"""A step over the frozen base's floor: forward, backward, clipping, AdamW, in bfloat16, on each base.

The floor has the same packed batch and the same loss; its forward pass is transformers' own, so that whatever this
project saves within the base's layers counts for it. PEFT's layers run under the same loss, which is kinder to them
than `Trainer`. A compiled step stands over the compiled floor, whose whole model is compiled for the one shape that
the batch has.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

from benchmarks.common import proofs
from benchmarks.common.bases import MEDIUM, MINI, SMALL, adapted, alpaca, base, made_up
from benchmarks.common.timing import block, interleaved, ratios, seconds
from benchmarks.peers import ours
from benchmarks.peers.floor import Floor, PeftStep
from benchmarks.peers.outcome import Schedule
from loratlas.data.examples import Encoded
from loratlas.placement.plan import place
from loratlas.training.step.microbatches import microbatches

PLACEMENT = "all:8"
SKIP = 2
"""Steps of our own loop that are left out: memory is watched in the first, and the second follows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One way to take a step.

    Args:
        dropout: in front of the adapters.
        compiled: all sides through torch.compile.
        target: what ours over the floor should not exceed.
    """

    dropout: float
    compiled: bool
    target: float


EAGER = (
    Case(dropout=0.0, compiled=False, target=1.12),
    Case(dropout=0.05, compiled=False, target=1.20),
)
COMPILED = Case(dropout=0.0, compiled=True, target=1.12)


def measure(*, rounds: int, compiled: bool, steps: int = 5) -> dict[str, Any]:
    """Per base and case: ours and PEFT's over the floor, and ours over PEFT's; and gradients against PEFT's.

    Args:
        rounds: of all sides in turns, after one that warms up.
        compiled: whether the compiled case is measured as well: some minutes of compiling.
        steps: per side and round, of which the median is taken.
    """
    found, faults, differences = [], list[str](), {}
    for name, rows in ((MINI, 16), (SMALL, 8), (MEDIUM, 4)):
        data = alpaca(name, rows=rows) if name == MINI else made_up(name, rows=rows, length=128)
        differences[name] = proofs.gradients(name, data, placement=PLACEMENT, rows=2)
        faults += proofs.faults(differences[name], name)
        for case in (*EAGER, COMPILED) if compiled else EAGER:
            found.append(_measured(name, data, case, rounds=rounds, steps=steps))
            gc.collect()
    return {
        "placement": PLACEMENT,
        "dtype": "bfloat16",
        "cases": found,
        "gradient_differences": differences,
        "faults": faults,
    }


def _measured(name: str, data: Encoded, case: Case, *, rounds: int, steps: int) -> dict[str, Any]:
    (batch,) = microbatches(data, range(len(data)), packed=True)
    frozen = base(name, "bfloat16")
    floor = Floor(frozen, batch, place(frozen, PLACEMENT), compiled=case.compiled)
    one, other = (
        adapted(name, "bfloat16", placement=PLACEMENT, dropout=case.dropout) for _ in ("peft", "ours")
    )
    peft = PeftStep(one, batch, compiled=case.compiled)
    schedule = Schedule(batch=len(data), dropout=case.dropout)

    def ours_once() -> Any:
        return ours.step_time(
            other, data, schedule, dtype="bfloat16", skip=SKIP, steps=steps, compiled=case.compiled
        )

    runs = interleaved(
        {
            "floor": lambda: block(floor.step, steps=steps),
            "peft": lambda: block(peft.step, steps=steps),
            "ours": ours_once,
        },
        rounds=rounds + 1,
    )
    kept = {side: found[1:] for side, found in runs.items()}  # the first round warms up and compiles
    return {
        "base": name,
        "tokens": batch.tokens,
        "labelled": batch.labelled,
        "dropout": case.dropout,
        "compiled": case.compiled,
        "target": case.target,
        "ours_over_floor": ratios(kept["ours"], kept["floor"]),
        "peft_over_floor": ratios(kept["peft"], kept["floor"]),
        "ours_over_peft": ratios(kept["ours"], kept["peft"]),
        "seconds": {side: seconds(samples) for side, samples in kept.items()},
    }
