"""`make bench`: side by side with peers on identical rows; results as JSON and a table under benchmarks/results/.

python -m benchmarks --steps 20 --rounds 3 --compiled
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def page(result: dict[str, Any]) -> str:
    """The table as Markdown, every figure from the JSON beside it."""
    lines = [
        "# Beside peers",
        "",
        "Made by `make bench`; all figures, machine and versions are in [bench.json](bench.json). Medians of paired",
        "ratios, runs in turns. *Steady* leaves out each run's first five steps, *whole* is the training call.",
        "",
        f"Base {result['base']}, {result['placement']}, {result['steps']} steps of 16 Alpaca rows, "
        f"{result['threads']} threads, {result['rounds']} rounds. "
        f"Peers at their best: {result['chosen']['Trainer']}; {result['chosen']['SFTTrainer']}.",
        "",
        "| row | steady | whole | CPU time, whole | target |",
        "|---|---|---|---|---|",
    ]
    for row in result["table"]:
        figures = [f"{row[kind]['median']:.2f}" for kind in ("steady", "whole", "whole_cpu")]
        lines.append(f"| {row['row']} | {' | '.join(figures)} | ≥ {row['target']:g} |")
    lines += [
        "",
        f"A step over the frozen base's floor, {result['step']['placement']}, bfloat16, eager, CPU time:",
        "",
        "| base | dropout | PEFT's layers | loratlas | target |",
        "|---|---|---|---|---|",
    ]
    for case in result["step"]["cases"]:
        theirs, own = (case[f"{side}_over_floor"]["cpu"]["median"] for side in ("peft", "ours"))
        lines.append(
            f"| {case['base']} | {case['dropout']:g} | {theirs:.2f} | {own:.2f} | ≤ {case['target']:g} |"
        )
    lines += [
        "",
        f"The allocator's peak of a run, {result['memory']['placement']}, over `Trainer`'s at the same precision:",
        "",
        "| base | precision | `Trainer`, MiB | loratlas, MiB | ratio | target |",
        "|---|---|---|---|---|---|",
    ]
    for case in result["memory"]["cases"]:
        theirs, own = (case[f"{side}_bytes"] / 2**20 for side in ("trainer", "ours"))
        lines.append(
            f"| {case['base']} | {case['dtype']} | {theirs:,.0f} | {own:,.0f} | {case['ratio']:.2f} "
            f"| ≤ {case['target']:g} |"
        )
    lines += [
        "",
        f"Gradients against PEFT's on fixed rows: {result['gradient_difference']:.1e} apart (float32). Held-out "
        "losses: " + ", ".join(f"{name} {runs[0]['nll']:.3f}" for name, runs in result["runs"].items()) + ".",
        "",
        "On an accelerator: not measured.",
    ]
    if result["busy"]:
        lines += ["", "Other work ran on the machine when this was measured."]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=20, help="of 16 rows, per run")
    parser.add_argument("--rounds", type=int, default=3, help="in which all sides run in turns")
    parser.add_argument("--compiled", action="store_true", help="try peers with torch_compile as well")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for bench.json and bench.md")
    arguments = parser.parse_args()
    from benchmarks.common import machine
    from benchmarks.parts import alpaca, memory, step

    before = machine.load()
    peaks = memory.measure()
    over_floor = step.measure(rounds=arguments.rounds)
    found = alpaca.measure(steps=arguments.steps, rounds=arguments.rounds, compiled=arguments.compiled)
    result = {
        "command": "python -m benchmarks " + " ".join(sys.argv[1:]),
        "machine": machine.machine(),
        "versions": machine.versions(),
        "revision": machine.revision(),
        "load_before": before,
        "busy": machine.busy(before),
        **found,
        "step": over_floor,
        "memory": peaks,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "bench.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text = page(result)
    (arguments.out / "bench.md").write_text(text, encoding="utf-8")
    print(text)
    for fault in result["faults"]:
        print(f"not the same work: {fault}", file=sys.stderr)
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
