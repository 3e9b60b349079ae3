"""What `loratlas plan` predicts of a step, against steps that were run: kept bytes, peak bytes, seconds.

python -m benchmarks.cost --out benchmarks/results/cost.json

Per base: twelve placements, each put through a dry run without weights, then trained for a few steps. Kept bytes are
autograd's own list of saved tensors, the peak is the allocator's (`FitResult.peak_bytes`), a step's time is the median
over the steps after the first three. Placements above the first layer run twice: with new rows in every step, and with
the same rows again, for which a run keeps what the layers below make of them. The calibration is made anew in an empty
folder. With one thread the clock is CPU time, which other work on the machine disturbs least; with more it is wall
clock.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.common import machine
from benchmarks.common.bases import MEDIUM, MINI, SMALL, base, made_up
from loratlas.adapters.attach import attach
from loratlas.adapters.layers.lean_lora import lean
from loratlas.anatomy.read import read
from loratlas.cost.calibration import Calibration
from loratlas.cost.dry_run import as_step, dry_run
from loratlas.cost.recorder import saved
from loratlas.placement.plan import Plan, place
from loratlas.training.fleet.train_fleet import detach_adapters
from loratlas.training.loop import fit
from loratlas.training.master_weights import MasterWeights
from loratlas.training.run_context import training_mode
from loratlas.training.settings import Settings
from loratlas.training.step.gradients import step_loss
from loratlas.training.step.microbatches import microbatches

PLACEMENTS = (
    "all:8",
    "all:64",
    "attention:8",
    "attention:32",
    "feedforward:8",
    "feedforward.down:16",
    "attn.o:8",
    "all@top/2:8",
    "feedforward@last2:16",
    "attention@first2:8",
    "attention@top/2:16 + feedforward@bottom/2:4",
    "feedforward.up@top/2:4",
)

CASES = {
    MINI: ("bfloat16", 4, 128),
    SMALL: ("bfloat16", 2, 128),
    MEDIUM: ("bfloat16", 1, 128),
}
"""Base → precision, rows of a step, tokens of a row."""

SKIP = 3


def kept(model: Any, data: Any) -> int:
    """Bytes that autograd keeps in a real step."""
    with lean(model), training_mode(model, checkpointing=False):
        masters = MasterWeights(model)
        masters.open()
        (batch,) = microbatches(data, range(len(data)), packed=True)
        step_loss(model, batch)
        with saved([*model.parameters(), *masters.lasting()]) as found:
            loss = step_loss(model, batch)
        assert loss.requires_grad
        masters.close()
        return sum(found.values())


def placement(
    frozen: Any, plan: Plan, data: Any, known: Calibration, settings: Settings, *, again: bool
) -> dict[str, Any]:
    """One placement: predicted, measured, and how far apart.

    Args:
        frozen: the bare base; given back bare.
        plan: to be priced.
        data: rows of one step where they come ``again`` in every step, else of all steps.
        known: times of operations, added to.
        settings: of the run.
        again: whether the layers below the lowest adapter keep what they made of the rows.
    """
    step = as_step(data.examples[: settings.batch_size])
    begun = time.process_time()
    dry = dry_run(
        frozen.config,
        plan.rows,
        step.examples,
        settings,
        packed=True,
        repeated_tokens=data.report.tokens if again else None,
    )
    middle = time.process_time()
    timed = known.learn([dry])
    ended = time.process_time()
    model = attach(plan.rows, frozen)
    saved_bytes = kept(model, step)
    laps = [known.clock()]
    result = fit(model, data, settings, packed=True, on_step=lambda _event: laps.append(known.clock()))
    seconds = median(after - before for before, after in zip(laps[SKIP:-1], laps[SKIP + 1 :], strict=True))
    detach_adapters(model)
    predicted = known.seconds(dry)
    assert predicted is not None
    assert result.peak_bytes is not None
    return {
        "placement": plan.placement,
        "rows_come": "again" if again else "once",
        "kept_layers": result.kept_layers,
        "trainable": plan.trainable,
        "saved_bytes": pair(dry.saved_bytes, saved_bytes),
        "peak_bytes": pair(dry.peak_bytes, result.peak_bytes),
        "step_seconds": pair(predicted, seconds),
        "dry_run_seconds": round(middle - begun, 3),
        "calibration_seconds": round(ended - middle, 3),
        "operations_timed": timed,
    }


def pair(predicted: float, measured: float) -> dict[str, float]:
    """Both, and the relative error of the prediction."""
    return {
        "predicted": predicted,
        "measured": measured,
        "error": round(predicted / measured - 1, 5),
    }


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cost.json"))
    parser.add_argument(
        "--steps", type=int, default=8, help="of each placement; the first three do not count"
    )
    parser.add_argument("--bases", nargs="+", default=list(CASES), choices=list(CASES))
    asked = parser.parse_args()
    before = machine.load()
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        known = Calibration(Path(folder), clock=clock)
        for name in asked.bases:
            dtype, rows, length = CASES[name]
            frozen = base(name, dtype)
            anatomy = read(frozen.config)
            data = {n: made_up(name, rows=rows * n, length=length) for n in (1, asked.steps)}
            settings = Settings(
                steps=asked.steps, batch_size=rows, dtype=dtype, warmup=0.0, compile="off", lr=1e-4
            )
            listed = []
            for text in PLACEMENTS:
                plan = place(anatomy, text)
                above = min(row.site.layer or 0 for row in plan.rows) > 0
                for again in (False, True) if above else (False,):
                    rows_of = data[1 if again else asked.steps]
                    listed.append(placement(frozen, plan, rows_of, known, settings, again=again))
                    print(name, json.dumps(listed[-1]), flush=True)
                    gc.collect()
            cases.append(
                {
                    "base": name,
                    "dtype": dtype,
                    "rows": rows,
                    "length": length,
                    "placements": listed,
                    "worst": {
                        quantity: max(abs(one[quantity]["error"]) for one in listed)
                        for quantity in ("saved_bytes", "peak_bytes", "step_seconds")
                    },
                }
            )
            del frozen
            gc.collect()
    document = {
        "command": " ".join(["python -m benchmarks.cost", *sys.argv[1:]]),
        "machine": machine.machine(),
        "versions": machine.versions(),
        "revision": machine.revision(),
        "threads": torch.get_num_threads(),
        "clock": "CPU time" if clock is time.process_time else "wall clock",
        "load_before": before,
        "busy": machine.busy(before),
        "targets": {"saved_bytes": 0.02, "peak_bytes": 0.10, "step_seconds": 0.15},
        "bases": cases,
        "accelerator": "not measured",
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for case in cases:
        print(case["base"], case["worst"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
