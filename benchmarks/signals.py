"""What a scan costs: memory over a frozen pass, time against PEFT's own preprocessing, and whether its order repeats.

    LORATLAS_SHARED=../shared python -m benchmarks.signals --out benchmarks/results/signals.json

The same Alpaca rows for all. Memory is the peak of what is allocated within one forward and backward pass, counted by
torch on the CPU; times are CPU times of one thread. PEFT's EVA and LoRA-GA are asked for what they need to place ranks:
EVA its decompositions, LoRA-GA its gradients.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import machine

BASE = "demo:llama-mini"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def rows_of(count: int) -> Any:
    """Encoded Alpaca rows, drawn."""
    from dataclasses import replace

    from loratlas.data.encode import encode, load_tokenizer
    from loratlas.sources import model_source, open_rows

    rows = open_rows("${LORATLAS_SHARED}/data/alpaca_train.jsonl.gz", limit=2000)
    encoded = encode(rows, load_tokenizer(model_source(BASE)), max_length=256)
    order = np.random.default_rng(0).permutation(len(encoded))[:count]
    return replace(encoded, examples=tuple(encoded.examples[i] for i in order))


def peak(run: Callable[[], Any]) -> int:
    """Bytes allocated at the peak, above what was there before."""
    from loratlas.training.step.memory import allocations

    with allocations() as changes:
        run()
    return int(np.cumsum(changes).max())


def memory(rows: Any, *, dtype: str) -> dict[str, Any]:
    """Peak of a pass with the gradient signal over the same pass without, weights counted in both."""
    from loratlas.anatomy.read import read
    from loratlas.data.batches.batching import collate
    from loratlas.evaluation.token_losses import token_losses
    from loratlas.scan.plan_from_scores import candidates
    from loratlas.signals.base import FOLDS, Signal
    from loratlas.signals.gradient import Gradient
    from loratlas.signals.rematerialize import Rematerialize
    from loratlas.signals.site_hooks import one_pass
    from loratlas.sources import open_model

    class Nothing(Signal):
        name, columns, needs = "nothing", (), "backward"

        def reset(self, model: Any) -> None:
            pass

        def values(self, folds: Sequence[int] = ()) -> dict[str, dict[str, float]]:
            return {}

    model = open_model(BASE, dtype=dtype)
    sites = candidates(read(model.config))
    batch = collate(list(rows.examples[:16]), packed=True)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    by_name = {}
    for name, signal, watched in (("plain", Nothing(), []), ("gradient", Gradient(), sites)):
        signal.begin(model, sites)
        rematerialize = Rematerialize()
        one_pass(model, batch, watched, [signal], token_losses, rematerialize)  # what is made and proven once

        def run(
            signal: Signal = signal, watched: Any = watched, rematerialize: Rematerialize = rematerialize
        ) -> None:
            one_pass(model, batch, watched, [signal], token_losses, rematerialize)

        by_name[name] = weights + peak(run)
    sketches = sum(t.numel() * t.element_size() for t in signal.held())
    return {
        "dtype": dtype,
        "tokens": batch.tokens,
        "plain_bytes": by_name["plain"],
        "gradient_bytes": by_name["gradient"],
        "ratio": by_name["gradient"] / by_name["plain"],
        "ratio_with_all_folds": (by_name["gradient"] + (FOLDS - 1) * sketches) / by_name["plain"],
        "kept_per_fold_bytes": sketches,
        "weights_bytes": weights,
    }


def clock(run: Callable[[], Any]) -> float:
    """CPU seconds."""
    begun = time.process_time()
    run()
    return time.process_time() - begun


def times(rows: Any, *, dtype: str, rounds: int) -> dict[str, Any]:
    """CPU seconds of ours, of a plain pass, of EVA and of LoRA-GA on the same rows, in turns."""
    from loratlas.anatomy.read import read
    from loratlas.scan.run_scan import scan
    from loratlas.signals.registry import untrained
    from loratlas.sources import open_model

    base = open_model(BASE, dtype=dtype)
    anatomy = read(base.config)
    runs: dict[str, Callable[[], Any]] = {
        "gradient": lambda: scan(
            base, anatomy, rows, signals=["gradient"], most_rows=len(rows), packed=True, by="gradient"
        ),
        "all signals": lambda: scan(
            base, anatomy, rows, signals=[*untrained(), "probe_yield"], most_rows=len(rows), packed=True
        ),
        "eva": lambda: eva(rows, dtype),
        "loraga": lambda: loraga(rows, dtype),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(clock(run))
    medians = {name: float(np.median(listed)) for name, listed in seconds.items()}
    return {
        "rows": len(rows),
        "dtype": dtype,
        "seconds": seconds,
        "over_eva": medians["gradient"] / medians["eva"],
        "over_loraga": medians["gradient"] / medians["loraga"],
    }


def _batches(rows: Any) -> list[dict[str, Any]]:
    from loratlas.data.batches.batching import collate

    listed = []
    for start in range(0, len(rows), 8):
        batch = collate(list(rows.examples[start : start + 8]), packed=False, pad_id=rows.pad_id)
        labels = batch.targets.roll(1, 1)
        labels[:, 0] = -100
        listed.append(
            {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": labels}
        )
    return listed


def eva(rows: Any, dtype: str) -> Any:
    """PEFT's decompositions of all inputs, at rank 8 with twice as many components."""
    from peft import EvaConfig, LoraConfig
    from peft.tuners.lora.eva import get_eva_state_dict

    from loratlas.sources import open_model

    config = LoraConfig(
        r=8,
        target_modules=LINEAR,
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=2.0, use_label_mask=False),
    )
    return get_eva_state_dict(open_model(BASE, dtype=dtype), _batches(rows), config, show_progress_bar=False)


def loraga(rows: Any, dtype: str) -> Any:
    """PEFT's gradients of all weights."""
    from peft import LoraConfig
    from peft.tuners.lora.config import LoraGAConfig
    from peft.tuners.lora.loraga import preprocess_loraga

    from loratlas.sources import open_model

    model = open_model(BASE, dtype=dtype)
    batches = _batches(rows)

    def step() -> None:
        for batch in batches:
            model(**batch).loss.backward()

    config = LoraConfig(
        r=8, target_modules=LINEAR, init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig()
    )
    preprocess_loraga(model, config, step)
    return model


def repeatability(rows: Any, *, dtype: str) -> dict[str, Any]:
    """Kendall's τ of the order from one half of the rows and from the other."""
    from dataclasses import replace

    from loratlas.anatomy.read import read
    from loratlas.scan.run_scan import scan
    from loratlas.signals.rank_correlation import tau
    from loratlas.sources import open_model

    base = open_model(BASE, dtype=dtype)
    anatomy, half = read(base.config), len(rows) // 2
    parts = [replace(rows, examples=rows.examples[i : i + half]) for i in (0, half)]
    listed = [
        scan(base, anatomy, part, signals=["gradient"], most_rows=half, packed=True, by="gradient")
        for part in parts
    ]
    one, two = (each.readings["gradient"].worth for each in listed)
    return {
        "rows_each": half,
        "rows_read": [each.rows for each in listed],
        "tau": tau(one, two),
        "settled": [each.settled for each in listed],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--parts", nargs="+", default=["memory", "times", "repeatability"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    before = machine.load()
    result: dict[str, Any] = {
        "command": "python -m benchmarks.signals " + " ".join(sys.argv[1:]),
        "machine": machine.machine(),
        "versions": machine.versions(),
        "revision": machine.revision(),
        "busy": machine.busy(before),
    }
    if "memory" in arguments.parts:
        result["memory"] = [memory(rows_of(16), dtype=dtype) for dtype in ("bfloat16", "float32")]
    if "times" in arguments.parts:
        result["times"] = times(rows_of(arguments.rows), dtype=arguments.dtype, rounds=arguments.rounds)
    if "repeatability" in arguments.parts:
        result["repeatability"] = repeatability(rows_of(2 * arguments.rows), dtype=arguments.dtype)
    text = json.dumps(result, indent=1, default=lambda v: None if math.isnan(v) else v)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
