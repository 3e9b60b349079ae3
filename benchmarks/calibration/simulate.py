"""Calibration (a): false-positive rate of the study estimator on simulated studies without a difference.

Every simulated study draws answer lengths, a seed effect, an example effect and seed × example noise of the
difference between two arms whose true difference is 0, and counts raw p ≤ 0.05. For comparison, the
percentile bootstrap over seeds is counted on the same studies.

    python benchmarks/calibration/simulate.py --studies 10000 --out
    benchmarks/results/calibration-simulated.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import scipy

from loratlas.study.results.estimator import crossed, p_value

# seeds, examples, then standard deviations in nats per token: seed, arm × example, seed × example.
SCENARIOS = {
    "3 seeds, all effects": (3, 200, 0.004, 0.06, 0.06),
    "5 seeds, all effects": (5, 200, 0.004, 0.06, 0.06),
    "5 seeds, seeds dominate": (5, 200, 0.02, 0.01, 0.02),
    "5 seeds, examples dominate": (5, 200, 0.0005, 0.2, 0.05),
    "5 seeds, no arm × example effect": (5, 200, 0.004, 0.0, 0.1),
    "10 seeds, all effects": (10, 200, 0.004, 0.06, 0.06),
    "5 seeds, 1,000 examples": (5, 1000, 0.004, 0.06, 0.06),
}
CHUNK = 250


def studies(rng: np.random.Generator, count: int, S: int, N: int, seed: float, example: float, noise: float):
    """Summed differences [count, S, N] of arms without a true difference, and answer tokens [count, N]."""
    tokens = 1 + rng.negative_binomial(2, 0.03, size=(count, N))  # answers are short and long: mean 66, wide
    per_token = (
        rng.normal(0, seed, (count, S, 1))
        + rng.normal(0, example, (count, 1, N))
        + rng.normal(0, noise, (count, S, N))
        * np.sqrt(66 / tokens)[:, None, :]  # long answers average it out
    )
    return per_token * tokens[:, None, :], tokens


def bootstrap_p(rng: np.random.Generator, value_by_seed: np.ndarray, draws: int = 400) -> np.ndarray:
    """Two-sided percentile-bootstrap p over seeds of [count, S] per-seed differences."""
    S = value_by_seed.shape[1]
    picks = rng.integers(0, S, (draws, S))
    means = value_by_seed[:, picks].mean(axis=-1)  # [count, draws]
    below = (means <= 0).mean(axis=1)
    return 2 * np.minimum(below, 1 - below)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    rows, begun = [], time.perf_counter()
    for index, (name, (S, N, seed, example, noise)) in enumerate(SCENARIOS.items()):
        rng = np.random.default_rng([options.seed, index])
        false = naive = 0
        for start in range(0, options.studies, CHUNK):
            summed, tokens = studies(rng, min(CHUNK, options.studies - start), S, N, seed, example, noise)
            outcome = crossed(summed, tokens)
            p = p_value(outcome.value, np.sqrt(outcome.variance), outcome.df, outcome.skewness)
            false += int((p <= 0.05).sum())
            by_seed = summed.sum(axis=-1) / tokens.sum(axis=-1)[:, None]
            naive += int((bootstrap_p(rng, by_seed) <= 0.05).sum())
        rows.append(
            {
                "scenario": name,
                "seeds": S,
                "examples": N,
                "studies": options.studies,
                "false_positives": false / options.studies,
                "bootstrap_over_seeds": naive / options.studies,
            }
        )
        print(
            f"{name:36s} {false / options.studies:.4f}   bootstrap {naive / options.studies:.4f}", flush=True
        )
    result = {
        "schema": "loratlas.calibration.simulated",
        "version": 1,
        "limit": 0.06,
        "passed": all(row["false_positives"] <= 0.06 for row in rows),
        "rows": rows,
        "seconds": round(time.perf_counter() - begun, 1),
        "command": "python benchmarks/calibration/simulate.py " + " ".join(sys.argv[1:]),
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
