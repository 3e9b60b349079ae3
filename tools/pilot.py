"""How far does LoRA of rank 1 on all linear layers get on the embedded tasks, between the base and full fine-tuning?

    python tools/pilot.py                         all tasks, benchmarks/results/pilot.json
    python tools/pilot.py retrieval --steps 20    one task, printed only
    LORATLAS_SHARED=../shared python tools/pilot.py alpaca nl2bash --out benchmarks/results/pilot.json
    python tools/pilot.py retrieval --base bases/gpt2-mini          another base, kept as "gpt2-mini retrieval"

For every task: loss of the bare base, of full fine-tuning and of LoRA all:1, each at the best of its learning rates
(chosen on the evaluation rows: a pilot finds a difficulty, it does not compare), after the task's own number of steps
of 16 rows. The share closed is (base − LoRA) / (base − full). A task is useful for comparing placements where that
share is neither near 0 nor near 1; ``format`` is a declared tie and is near 1 on purpose.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

STEPS = {
    "rules": 120,
    "format": 80,
    "retrieval": 6,
    "facts-300": 200,
    "facts-1000": 400,
    "facts-3000": 1200,
}
REAL = {
    "alpaca": (100, 192),
    "nl2bash": (14, 128),
    "gsm8k": (8, 256),
    "e2e": (16, 128),
}
"""Rows that are no part of the project → steps and tokens of a row; LORATLAS_SHARED says where they lie."""

RATES = {"full": (2.5e-4, 5e-4, 1e-3, 2e-3), "all:1": (5e-3, 1.25e-2, 3e-2)}
BASE = "demo:llama-mini"
EVALUATION_ROWS = 300


def load(kind: str, base: str) -> Any:
    """The base with everything trainable in float32 (``full``), or in bfloat16 with rank-1 adapters (``all:1``)."""
    from loratlas.anatomy.read import read
    from loratlas.placement.plan import place
    from loratlas.sources import model_source, open_model

    model = open_model(base, dtype="float32" if kind == "full" else "bfloat16")
    if kind == "full":
        return model.requires_grad_(True)
    return place(read(model_source(base)), "all:1").attach(model, seed=0)


def nll(model: Any, rows: Any) -> float:
    from loratlas.evaluation.score import score

    scores = score(model, rows, packed=True)
    return float(scores.nll.sum() / scores.n.sum())


def rows_of(task: str) -> tuple[Any, Any]:
    """Rows to train on and rows to judge on."""
    from loratlas.sources import open_rows

    if task in REAL:
        path = "${LORATLAS_SHARED}/data/" + task
        train = open_rows(f"{path}_train.jsonl.gz", limit=6000)
        return train, open_rows(f"{path}_eval.jsonl.gz", limit=EVALUATION_ROWS)
    train = open_rows(f"demo:{task}")
    return train, open_rows(f"demo:{task}", split="eval", limit=EVALUATION_ROWS)


def measure(task: str, steps: int, kinds: dict[str, tuple[float, ...]], base: str = BASE) -> dict[str, Any]:
    """Losses of a task: bare base, then every kind at each of its rates."""
    from loratlas.data.encode import encode, load_tokenizer
    from loratlas.sources import model_source
    from loratlas.training.loop import fit
    from loratlas.training.settings import Settings

    tokenizer, (_, length) = load_tokenizer(model_source(base)), REAL.get(task, (0, 128))
    train, judged = (encode(rows, tokenizer, max_length=length) for rows in rows_of(task))
    by_name: dict[str, Any] = {
        "task": task,
        "steps": steps,
        "tokens_per_row": round(train.report.tokens / train.report.kept, 1),
        "answer_tokens_per_row": round(train.report.answer_tokens / train.report.kept, 1),
        "base": round(nll(load("full", base), judged), 4),
    }
    for kind, rates in kinds.items():
        losses, begun = {}, time.perf_counter()
        for lr in rates:
            model = load(kind, base)
            dtype = "float32" if kind == "full" else "bfloat16"
            result = fit(model, train, Settings(steps=steps, lr=lr, dtype=dtype, warmup=0.05), packed=True)
            losses[f"{lr:g}"] = None if result.diverged else round(nll(model, judged), 4)
            print(
                task, steps, kind, lr, losses[f"{lr:g}"], f"{time.perf_counter() - begun:.0f} s", flush=True
            )
        kept = {lr: loss for lr, loss in losses.items() if loss is not None}
        best = min(kept, key=kept.__getitem__)
        seconds = round((time.perf_counter() - begun) / len(rates), 1)
        by_name[kind] = {"nll": kept[best], "lr": float(best), "by_rate": losses, "seconds_per_run": seconds}
    by_name["closed"] = round(
        (by_name["base"] - by_name["all:1"]["nll"]) / (by_name["base"] - by_name["full"]["nll"]), 3
    )
    return by_name


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("tasks", nargs="*", default=[], help="which tasks; default: all embedded ones")
    parser.add_argument("--base", default=BASE, help=f"default: {BASE}")
    parser.add_argument("--steps", type=int, help="instead of the task's own number")
    parser.add_argument(
        "--lora", type=float, nargs="+", default=RATES["all:1"], help="learning rates of LoRA"
    )
    parser.add_argument("--full", type=float, nargs="+", default=RATES["full"], help="of full fine-tuning")
    parser.add_argument("--out", type=Path, help="JSON to write or add to")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    out = arguments.out or (None if arguments.tasks else Path("benchmarks/results/pilot.json"))
    for task in arguments.tasks or STEPS:
        kinds = {"full": tuple(arguments.full), "all:1": tuple(arguments.lora)}
        measured = measure(task, arguments.steps or STEPS.get(task) or REAL[task][0], kinds, arguments.base)
        name = task if arguments.base == BASE else f"{Path(arguments.base).name} {task}"
        print(json.dumps(measured))
        if out is not None:
            all_found = json.loads(out.read_text()) if out.exists() else {}
            out.write_text(json.dumps({**all_found, name: measured}, indent=1) + "\n")


if __name__ == "__main__":
    main()
