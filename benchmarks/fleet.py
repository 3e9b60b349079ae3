"""A fleet against the same runs one after the other, interleaved in one process, CPU time, equal losses checked.

python -m benchmarks.fleet --out benchmarks/results/fleet.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

TEXTS = ("all:8", "attention:8", "feedforward:8")
RATES = (5e-4, 1e-3, 2e-3)


def compare(*, runs: int, dtype: str, batch_size: int, steps: int, rounds: int) -> dict[str, Any]:
    """Median of paired ratios (runs alone / fleet), A B A B, and the largest relative difference of losses."""
    from loratlas.adapters.attach import attach
    from loratlas.data.encode import encode, load_tokenizer
    from loratlas.placement.plan import place
    from loratlas.sources import model_source, open_model, open_rows
    from loratlas.training.fleet.train_fleet import Fleet, Member, detach_adapters
    from loratlas.training.loop import fit
    from loratlas.training.settings import Settings

    base = open_model("demo:llama-mini", dtype=dtype)
    rows = encode(
        open_rows("demo:facts-300"), load_tokenizer(model_source("demo:llama-mini")), max_length=256
    )
    members = [
        Member(
            rows=place(base, TEXTS[number % 3]).rows,
            settings=Settings(
                steps=steps,
                lr=RATES[number // 3 % 3],
                seed=number // 9,
                dtype=dtype,
                batch_size=batch_size,
            ),
        )
        for number in range(runs)
    ]

    def side_by_side() -> list[Any]:
        return Fleet(base, rows, members).fit()

    def one_by_one() -> list[Any]:
        listed = []
        for member in members:
            model = attach(member.rows, base, seed=member.settings.seed)
            listed.append(fit(model, rows, member.settings, packed=True))
            detach_adapters(model)
        return listed

    ratios, worst, seconds = [], 0.0, []
    for _ in range(rounds):
        begun = time.process_time()
        alone = one_by_one()
        middle = time.process_time()
        fleet = side_by_side()
        ended = time.process_time()
        ratios.append((middle - begun) / (ended - middle))
        seconds.append([middle - begun, ended - middle])
        for one, other in zip(alone, fleet, strict=True):
            for a, b in zip(one.curve, other.curve, strict=True):
                worst = max(worst, abs(a.nll - b.nll) / a.nll)
    return {
        "runs": runs,
        "dtype": dtype,
        "batch_size": batch_size,
        "steps": steps,
        "tokens_per_step": alone[0].tokens / steps,
        "alone_over_fleet": statistics.median(ratios),
        "ratios": ratios,
        "cpu_seconds": seconds,
        "largest_relative_loss_difference": worst,
    }


def main() -> int:
    """Measure and write."""
    import torch
    import transformers

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fleet.json"))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, nargs="+", default=[3, 9, 27])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 16])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    listed = [
        compare(runs=runs, dtype=dtype, batch_size=size, steps=asked.steps, rounds=asked.rounds)
        for runs in asked.runs
        for dtype in asked.dtypes
        for size in asked.batch_sizes
    ]
    document = {
        "command": " ".join(["python -m benchmarks.fleet", *sys.argv[1:]]),
        "machine": {"processor": platform.processor() or platform.machine(), "threads": 1},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "cpu": listed,
        "accelerator": "not measured",
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
