"""`make bench`: side by side with peers on identical rows; results as JSON and a table under benchmarks/results/.

python -m benchmarks --steps 20 --rounds 3 --compiled
python -m benchmarks --device cuda
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import page

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Measure and write; 1 if the sides did not do the same work."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=20, help="of 16 Alpaca rows, per run")
    parser.add_argument("--rounds", type=int, default=3, help="in which all sides run in turns")
    parser.add_argument("--compiled", action="store_true", help="measure compiled sides as well: much longer")
    parser.add_argument("--study-steps", type=int, default=20, help="of each of the study's 27 runs")
    parser.add_argument("--study-rows", type=int, default=4, help="rows per step of these")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON and the table")
    asked = parser.parse_args()
    from benchmarks.common import machine

    before = machine.load()
    measured = _on_cuda(asked) if asked.device == "cuda" else _on_cpu(asked)
    result = {
        "command": "python -m benchmarks " + " ".join(sys.argv[1:]),
        "machine": machine.machine(),
        "versions": machine.versions(),
        "revision": machine.revision(),
        "load_before": before,
        "busy": machine.busy(before),
        **measured,
    }
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.device == "cuda":
        name, words = "accelerator", page.accelerator(result)
    else:
        elsewhere = (asked.out / "accelerator.json").exists()
        name, words = "bench", page.bench(result, measured_elsewhere=elsewhere)
    (asked.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (asked.out / f"{name}.md").write_text(words, encoding="utf-8")
    print(words)
    for fault in result["faults"]:
        print(f"not the same work: {fault}", file=sys.stderr)
    return 1 if result["faults"] else 0


def _on_cpu(asked: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.parts import alpaca, memory, step, study

    peaks = memory.measure()
    over_floor = step.measure(rounds=asked.rounds, compiled=asked.compiled)
    measured = alpaca.measure(steps=asked.steps, rounds=asked.rounds, compiled=asked.compiled)
    recipe = measured.pop("recipe")
    runs = study.measure(recipe=recipe, rounds=asked.rounds, steps=asked.study_steps, batch=asked.study_rows)
    faults = [*over_floor.pop("faults"), *measured.pop("faults"), *runs.pop("faults")]
    return {**measured, "step": over_floor, "memory": peaks, "study": runs, "faults": faults}


def _on_cuda(asked: argparse.Namespace) -> dict[str, Any]:
    import torch

    from benchmarks.parts import accelerator

    if not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no such device here")
    return accelerator.measure(device="cuda", rounds=asked.rounds)


if __name__ == "__main__":
    sys.exit(main())
