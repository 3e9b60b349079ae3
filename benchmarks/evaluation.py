"""Evaluation beside transformers' `Trainer.evaluate`: the same Alpaca rows, model, precision and threads.

Both sides get the same token ids and labels, tokenised beforehand. They run in turns, A B A B …, and the ratio is the
median over pairs, so that what else the machine does falls on both. A side is judged by examples per second of wall
clock and of CPU time. Both losses are compared: Trainer's `eval_loss` is a mean of batches, which the audit reproduces
from this side's table. Memory is the peak of a process of its own that streams so many examples to Parquet.

    OMP_NUM_THREADS=1 python benchmarks/evaluation.py --rows alpaca.jsonl.gz --out benchmarks/results/evaluation.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

BATCH = 8
"""Trainer's own default of per_device_eval_batch_size."""


def prepared(rows: str, count: int, dtype: str) -> tuple[Any, Any]:
    """The embedded base and ``count`` encoded rows."""
    from loratlas.data.encode import encode, load_tokenizer
    from loratlas.data.load_rows import load_rows
    from loratlas.demo import base_path
    from loratlas.models.load import load_model

    encoded = encode(load_rows(rows, limit=count), load_tokenizer(base_path()), max_length=512)
    return load_model(base_path(), dtype=dtype), encoded


def with_adapter(model: Any) -> Any:
    """A LoRA adapter of rank 8 at every linear map, with random factors."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def trainer_of(model: Any, encoded: Any, folder: str, dtype: str) -> Any:
    """transformers' Trainer over the same rows: padded to the longest of each batch, the loss only."""
    import torch
    from transformers import Trainer, TrainingArguments

    rows = [
        {
            "input_ids": e.input_ids.tolist(),
            "labels": [int(i) if k else -100 for i, k in zip(e.input_ids, e.labelled, strict=True)],
        }
        for e in encoded.examples
    ]

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in batch)

        def filled(name: str, by: int) -> torch.Tensor:
            return torch.tensor([row[name] + [by] * (longest - len(row[name])) for row in batch])

        ids, labels = filled("input_ids", encoded.pad_id), filled("labels", -100)
        mask = torch.tensor(
            [[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in batch]
        )
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}

    options = TrainingArguments(
        output_dir=folder,
        per_device_eval_batch_size=BATCH,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        prediction_loss_only=True,
        bf16_full_eval=False,
    )
    return Trainer(model=model, args=options, eval_dataset=rows, data_collator=collate)


def timed(run: Callable[[], Any]) -> tuple[float, float, Any]:
    """(wall seconds, CPU seconds, result)."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def compare(rows: str, count: int, pairs: int, dtype: str, adapter: bool) -> dict[str, Any]:
    """Pairs of one evaluation by each side."""
    from loratlas.evaluation.score import score
    from loratlas.loss_audit.audit import evidence_of, identify
    from loratlas.loss_audit.catalogue import catalogue
    from loratlas.loss_audit.definitions import Definition, value

    model, encoded = prepared(rows, count, dtype)
    if adapter:
        model = with_adapter(model)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(model, encoded, folder, dtype)
        sides = {
            "trainer": lambda: trainer.evaluate()["eval_loss"],
            "loratlas": lambda: score(model, encoded, packed=True),
        }
        for run in sides.values():  # once unmeasured: first calls build caches on either side
            run()
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        by_name: dict[str, Any] = {}
        for _ in range(pairs):
            for name, run in sides.items():
                wall, cpu, by_name[name] = timed(run)
                measured[name].append((wall, cpu))
    evidence = evidence_of(by_name["loratlas"])
    own = value(Definition(name="b", aggregate="batch", batch_size=BATCH), evidence)
    matches = identify(by_name["trainer"], evidence, among=catalogue(evidence), tolerance=1e-3)
    ratios = {
        kind: [a[k] / b[k] for a, b in zip(measured["trainer"], measured["loratlas"], strict=True)]
        for k, kind in enumerate(("wall", "cpu"))
    }
    return {
        "dtype": dtype,
        "adapter": "rank 8, all linear maps" if adapter else None,
        "examples": len(encoded),
        "tokens": encoded.report.tokens,
        "labelled_tokens": encoded.report.answer_tokens,
        "pairs": pairs,
        "speedup": {kind: round(median(values), 3) for kind, values in ratios.items()},
        "speedups": {kind: [round(v, 3) for v in values] for kind, values in ratios.items()},
        "examples_per_second": {
            name: {
                "wall": round(len(encoded) / median(w for w, _ in seconds), 2),
                "cpu": round(len(encoded) / median(c for _, c in seconds), 2),
            }
            for name, seconds in measured.items()
        },
        "losses": {
            "trainer_eval_loss": by_name["trainer"],
            "same_definition_here": own,
            "difference": own - by_name["trainer"],
            "token_mean": by_name["loratlas"].token_mean_nll,
            "named": [match.definition.name for match in matches],
        },
    }


def stream(rows: str, count: int) -> None:
    """Child process: measure ``count`` examples, made on the way from some rows, and print the peak."""
    import resource

    from loratlas.data.examples import Example
    from loratlas.evaluation.token_scorer import measure

    model, encoded = prepared(rows, 64, "float32")

    def examples() -> Iterator[Example]:
        for e in islice(cycle(encoded.examples), count):
            yield Example(input_ids=e.input_ids[-64:].copy(), labelled=e.labelled[-64:].copy(), row=0)

    with tempfile.TemporaryDirectory() as folder:
        out = measure(model, examples(), packed=True, out=Path(folder), bounds=False, chunk=256)
        size = (out / "tokens.parquet").stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"examples": count, "peak_bytes": peak, "table_bytes": size}))


def memory(rows: str, counts: list[int]) -> list[dict[str, int]]:
    """Peaks of processes that stream few and many examples."""
    outcome = []
    for count in counts:
        command = [sys.executable, __file__, "--rows", rows, "--stream", str(count)]
        outcome.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", required=True, help="Alpaca rows, a file that `loratlas` reads")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--memory", type=int, nargs="*", default=[512, 2048, 8192])
    parser.add_argument("--stream", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.stream is not None:
        stream(options.rows, options.stream)
        return 0
    from loratlas.study.execution.machine_record import machine, revision, versions

    begun = time.perf_counter()
    results = []
    for dtype, adapter in (("float32", False), ("float32", True), ("bfloat16", False), ("bfloat16", True)):
        results.append(compare(options.rows, options.count, options.pairs, dtype, adapter))
        print(json.dumps(results[-1]), flush=True)
    peaks = memory(options.rows, options.memory)
    outcome = {
        "schema": "loratlas.benchmark.evaluation",
        "version": 1,
        "limit": 3.0,
        "passed": all(result["speedup"]["cpu"] >= 3.0 for result in results),
        "against": f"transformers Trainer.evaluate, per_device_eval_batch_size={BATCH}, prediction_loss_only",
        "results": results,
        "memory": peaks,
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "load_average": round(os.getloadavg()[0], 2),
        "seconds": round(time.perf_counter() - begun, 1),
        "command": f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} python benchmarks/evaluation.py "
        f"--rows {Path(options.rows).name} --count {options.count} --pairs {options.pairs}",
        "machine": machine(),
        "versions": versions(),
        "revision": revision(),
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(outcome, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
