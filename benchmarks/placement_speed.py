"""What a placement costs per step on DialoGPT-medium's shape: over the frozen base's floor, by PEFT's layers and ours.

python -m benchmarks.placement_speed --out benchmarks/results/placement_speed.json

A published comparison reports attention-only as 15 % and feed-forward-only as 32 % faster to train than full LoRA. Each
of its arms, the list that very likely stood for it and the true role, runs a step of forward, backward, clipping and
AdamW in bfloat16 on the same packed batch. The floor is the frozen base's forward and backward, which no placement in
every layer can do without; what an arm costs above it is what placement can save. Sides run in turns, and ratios are
paired within a round; with one thread the clock is CPU time, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import machine
from benchmarks.common.bases import MEDIUM, base, made_up
from benchmarks.common.timing import Sample, block, ratio, timed
from benchmarks.peers import ours
from benchmarks.peers.floor import Floor, PeftStep
from benchmarks.peers.outcome import Schedule
from loratlas.files import write_json
from loratlas.placement.plan import Plan, place
from loratlas.training.fleet.train_fleet import detach_adapters
from loratlas.training.step.microbatches import microbatches

ARMS = {
    "full": 'legacy:"c_attn,c_proj,c_fc":16',
    "attention as a list": 'legacy:"c_attn,c_proj":16',
    "attention": "attention:16",
    "feed-forward as a list": 'legacy:"c_fc":16',
    "feed-forward at half rank": "feedforward:8",
}
"""Name → placement; every other arm's time is compared with the first's."""

ROWS, LENGTH = 2, 128
SKIP = 1


def steps_of(frozen: Any, plan: Plan, data: Any, *, steps: int) -> dict[str, Sample]:
    """One arm's step on either side; the adapters are put on and taken off again."""
    (batch,) = microbatches(data, range(len(data)), packed=True)
    model = plan.attach(frozen, seed=0)
    peft = PeftStep(model, batch)
    peft.step()
    by_name = {"peft": block(peft.step, steps=steps)}
    detach_adapters(model)
    model = plan.attach(frozen, seed=0)
    schedule = Schedule(batch=len(data), dropout=0.0)
    by_name["ours"] = ours.step_time(model, data, schedule, dtype="bfloat16", skip=SKIP, steps=steps)
    detach_adapters(model)
    gc.collect()
    return by_name


def measure(*, rounds: int, steps: int) -> dict[str, Any]:
    """Every arm's step over the floor and over the first arm's.

    Args:
        rounds: of all sides in turns, after one that warms up.
        steps: per side and round, of which the median is taken.
    """
    data = made_up(MEDIUM, rows=ROWS, length=LENGTH)
    (batch,) = microbatches(data, range(len(data)), packed=True)
    frozen = base(MEDIUM, "bfloat16")
    plans = {name: place(frozen.config, text) for name, text in ARMS.items()}
    below = base(MEDIUM, "bfloat16")
    floor = Floor(below, batch, plans["full"])
    floors, times = [], {name: {"peft": [], "ours": []} for name in ARMS}
    for turn in range(rounds + 1):
        sample = block(floor.step, steps=steps)
        every = {name: steps_of(frozen, plan, data, steps=steps) for name, plan in plans.items()}
        print(f"round {turn} of {rounds}", file=sys.stderr, flush=True)
        if turn:
            floors.append(sample.cpu)
            for name, sides in every.items():
                for side, one in sides.items():
                    times[name][side].append(one.cpu)
    first = next(iter(ARMS))
    return {
        "base": MEDIUM,
        "dtype": "bfloat16",
        "tokens": batch.tokens,
        "clock": "cpu seconds",
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "arms": [
            {
                "name": name,
                "placement": ARMS[name],
                "trainable": plans[name].trainable,
                **{
                    side: {
                        "over_floor": ratio(times[name][side], floors),
                        "over_full": ratio(times[name][side], times[first][side]),
                    }
                    for side in ("peft", "ours")
                },
            }
            for name in ARMS
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = machine.load()
    clock, found = timed(lambda: measure(rounds=options.rounds, steps=options.steps))
    write_json(
        options.out,
        {
            "schema": "loratlas.placement-speed",
            "version": 1,
            "command": f"python -m benchmarks.placement_speed --rounds {options.rounds} --steps {options.steps}",
            "machine": machine.machine(),
            "versions": machine.versions(),
            "revision": machine.revision(),
            "load_before": load,
            "busy": machine.busy(load),
            "seconds": round(clock.wall, 1),
            **found,
        },
    )


if __name__ == "__main__":
    main()
