"""Calibration (b), (c), (d): the study estimator on real training runs where the truth is known.

Twins are two runs of one arm on the same seed's data order with other initialisation and dropout: between them
there is nothing to find. Every pair of twins is trained by the project's own loop on the embedded base and judged
on the same rows, and many small studies are drawn from the pool: 5 pairs and half of the rows each.

    (b) twins, labels swapped at random per pair: raw p ≤ 0.05 in at most 8 % of the studies.
    (c) two different arms, their difference over the whole pool taken away: at most 8 %.
    (d) the same, and the difference that the study itself says it would detect put in: found in at least 75 %.

    python benchmarks/calibration/twins.py --out benchmarks/results/calibration-twins.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from loratlas.study.execution.machine_record import machine, revision, versions
from loratlas.study.results.estimator import estimate

# The upper half of the layers only: half of the backward pass, and twins differ all the same.
ARMS = {"one": "attention@top/2:4", "other": "feedforward@top/2:2"}
RATES = {"one": 3e-3, "other": 3e-3}
TASK, STEPS, BATCH, ROWS, MAX_LENGTH, DROPOUT = "demo:facts-300", 30, 16, 300, 64, 0.05
DRAWS, SEEDS_PER_STUDY = 4000, 5
OTHER_INIT = 1_000_003  # added to the seed for the twin's initialisation and dropout


def train_pairs(pairs: range) -> dict[str, np.ndarray]:
    """Summed losses [pairs, N] of run "a", of its "twin" and of the "other" arm, and answer "tokens" [N]."""
    import torch

    torch.set_num_threads(1)

    from loratlas.anatomy.read import read
    from loratlas.data.batches.batching import training_order
    from loratlas.data.encode import encode, load_tokenizer
    from loratlas.demo import base_path
    from loratlas.evaluation.score import score
    from loratlas.models.load import load_model
    from loratlas.placement.plan import place
    from loratlas.sources import open_rows
    from loratlas.study.inputs.row_splits import subset
    from loratlas.training.loop import fit
    from loratlas.training.settings import Settings

    base = load_model(base_path(), dtype="float32")
    anatomy, tokenizer = read(base_path()), load_tokenizer(base_path())
    data = encode(open_rows(TASK), tokenizer, max_length=MAX_LENGTH)
    judged = encode(open_rows(TASK, split="eval"), tokenizer, max_length=MAX_LENGTH)
    judged = subset(judged, np.random.default_rng(0).permutation(len(judged))[:ROWS])
    plans = {name: place(anatomy, text) for name, text in ARMS.items()}
    tokens = None

    def run(arm: str, order: int, noise: int) -> np.ndarray:
        nonlocal base, tokens
        # The loop draws order and dropout from one seed; twins need the same order with other dropout. The rows
        # of one epoch are therefore laid out so that the shuffle of seed `noise` gives the order of seed `order`.
        wanted = training_order(len(data), steps=STEPS, batch_size=BATCH, seed=order).reshape(-1)
        shuffle = training_order(STEPS * BATCH, steps=STEPS, batch_size=BATCH, seed=noise).reshape(-1)
        laid_out = np.empty_like(wanted)
        laid_out[shuffle] = wanted
        model = plans[arm].attach(base, seed=noise, dropout=DROPOUT)
        settings = Settings(
            steps=STEPS, batch_size=BATCH, lr=RATES[arm], seed=noise, dropout=DROPOUT, dtype="float32"
        )
        fit(model, subset(data, laid_out), settings, evaluate=None, out=None, packed=True)
        scores = score(model, judged, packed=True)
        base = model.unload()
        tokens = np.asarray(scores.n)
        return np.asarray(scores.nll)

    runs: dict[str, list[np.ndarray]] = {"a": [], "twin": [], "other": []}
    for pair in pairs:
        runs["a"].append(run("one", pair, pair))
        runs["twin"].append(run("one", pair, pair + OTHER_INIT))
        runs["other"].append(run("other", pair, pair))
        print(f"pair {pair}: {time.process_time():.0f} s of CPU", file=sys.stderr, flush=True)
    assert tokens is not None
    return {**{name: np.stack(rows) for name, rows in runs.items()}, "tokens": tokens}


def draws(
    difference: np.ndarray, tokens: np.ndarray, *, swap: bool, rng: np.random.Generator
) -> Mapping[str, float]:
    """Small studies drawn from a pool of pairs.

    Args:
        difference: [pairs, N] summed losses, run B minus run A, without a true difference.
        tokens: [N] answer tokens.
        swap: change each drawn pair's labels with probability ½.

    Returns:
        Share of raw p ≤ 0.05, and the share once each study's own detectable difference is put in.
    """
    pairs, N = difference.shape
    false = result = 0
    sizes = []
    for _ in range(DRAWS):
        chosen = rng.choice(pairs, SEEDS_PER_STUDY, replace=False)
        rows = rng.choice(N, N // 2, replace=False)
        x = difference[chosen][:, rows]
        if swap:
            x = x * rng.choice([-1.0, 1.0], (SEEDS_PER_STUDY, 1))
        study = estimate(x, tokens[rows])
        false += study.p <= 0.05
        size = study.detectable()
        sizes.append(size)
        # As often up as down: the arm that is truly worse is not known beforehand.
        result += estimate(x + rng.choice([-1.0, 1.0]) * size * tokens[rows], tokens[rows]).p <= 0.05
    return {
        "false_positives": false / DRAWS,
        "detected": result / DRAWS,
        "median_detectable": float(np.median(sizes)),
    }


def centred(difference: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The pool's own difference of token means taken away, token by token."""
    return difference - difference.sum() / (len(difference) * tokens.sum()) * tokens


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pool", type=Path, default=None, help="keep the trained losses here, or take them")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    begun = time.perf_counter()
    if options.pool and options.pool.exists():
        with np.load(options.pool, allow_pickle=False) as kept:
            runs = dict(kept)
    else:
        ranges = [range(k, options.pairs, options.workers) for k in range(options.workers)]
        with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
            parts = list(pool.map(train_pairs, ranges))
        runs = {name: np.concatenate([part[name] for part in parts]) for name in ("a", "twin", "other")}
        runs["tokens"] = parts[0]["tokens"]
        if options.pool:
            np.savez(options.pool, **runs)
    tokens = runs.pop("tokens")
    trained = time.perf_counter() - begun
    means = {name: float(losses.sum() / (len(losses) * tokens.sum())) for name, losses in runs.items()}
    rng = np.random.default_rng(0)
    twins = draws(runs["twin"] - runs["a"], tokens, swap=True, rng=rng)
    arms = draws(centred(runs["other"] - runs["a"], tokens), tokens, swap=False, rng=rng)
    passed = twins["false_positives"] <= 0.08 and arms["false_positives"] <= 0.08 and arms["detected"] >= 0.75
    result: dict[str, Any] = {
        "schema": "loratlas.calibration.twins",
        "version": 1,
        "passed": passed,
        "limits": {"false_positives": 0.08, "detected": 0.75},
        "twins": twins,
        "arms": arms,
        "token_means": means,
        "design": {
            "pairs": len(runs["a"]),
            "runs": 3 * len(runs["a"]),
            "rows": len(tokens),
            "studies": DRAWS,
            "seeds_per_study": SEEDS_PER_STUDY,
            "rows_per_study": len(tokens) // 2,
            "task": TASK,
            "arms": ARMS,
            "learning_rates": RATES,
            "steps": STEPS,
            "batch_size": BATCH,
            "dropout": DROPOUT,
        },
        "seconds": {"training": round(trained, 1), "all": round(time.perf_counter() - begun, 1)},
        "command": f"python benchmarks/calibration/twins.py --pairs {len(runs['a'])} --workers {options.workers}"
        + (f" --out {options.out}" if options.out else ""),
        "machine": machine(),
        "versions": versions(),
        "revision": revision(),
    }
    text = json.dumps(result, indent=2) + "\n"
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
