"""What recorded studies say about a world: curves of loss against rate, noise of runs, rows of real answers.

A curve is what lies above its minimum at a distance x (logarithm of the rate over the best one):

    excess(x) = −s·x + (s/q)·(exp(q·x) − 1)

falling by s nats per unit far to the left, rising like exp(q·x) to the right, curvature s·q at the minimum. s, q and
the best rate of each arm are fitted to the tuning losses of the studies in docs/results.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
STUDIES, ROWS = ROOT / "docs" / "results", ROOT / "benchmarks" / "results" / "oracle"
FARTHEST = 6.0
"""q·x is cut here: what lies beyond has come apart whatever its loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Loss against rate, and noise, of one recorded study.

    Args:
        name: the study. slope: s. rise: q. optima: standard deviation of the arms' best rates, logarithm.
        run: standard deviation of one run of one arm, beyond what its seed gives to all arms; nats per token.
        seed: standard deviation of what a seed gives to all arms.
    """

    name: str
    slope: float
    rise: float
    optima: float
    run: float
    seed: float

    def excess(self, x: np.ndarray) -> np.ndarray:
        """Nats per token above the minimum at distances x."""
        return excess(x, self.slope, self.rise)


def excess(x: np.ndarray, slope: float, rise: float) -> np.ndarray:
    return -slope * x + slope / rise * np.expm1(np.minimum(rise * x, FARTHEST))


def curve(study: str) -> Curve:
    """Fit one study of docs/results; arms share s and q, each has its own best rate and loss."""
    from scipy.optimize import least_squares

    study_result = json.loads((STUDIES / f"{study}.json").read_text(encoding="utf-8"))
    arms = []
    for arm in study_result["arms"]:
        by_rate: dict[float, list[float]] = {}
        for run in arm["tuning"]:
            by_rate.setdefault(run["lr"], []).append(run["nll"] if run["nll"] is not None else np.inf)
        x = np.log(sorted(by_rate))
        y = np.array([float(np.mean(by_rate[rate])) for rate in sorted(by_rate)])
        near = y < study_result["base_nll"]  # the others have come apart
        arms.append((x[near], y[near]))

    def residuals(parameters: np.ndarray) -> np.ndarray:
        slope, rise = np.exp(parameters[:2])
        per_arm = parameters[2:].reshape(-1, 2)
        off = [
            (low + excess(x - best, slope, rise) - y) / np.sqrt(0.02 + (y - y.min()))
            for (x, y), (best, low) in zip(arms, per_arm, strict=True)
        ]
        return np.concatenate(off)

    start = [np.log(0.3), np.log(2.0), *np.concatenate([(x[y.argmin()], y.min()) for x, y in arms])]
    fitted = least_squares(residuals, start).x
    runs = np.array([[run["nll"] for run in arm["runs"]] for arm in study_result["arms"]])
    left = runs - runs.mean(axis=1, keepdims=True)
    shared = left.mean(axis=0)
    return Curve(
        name=study,
        slope=float(np.exp(fitted[0])),
        rise=float(np.exp(fitted[1])),
        optima=float(fitted[2::2].std(ddof=1)),
        run=float((left - shared).std() * np.sqrt(left.size / ((len(left) - 1) * (left.shape[1] - 1)))),
        seed=float(shared.std(ddof=1)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Differences of two pairs of recorded plans on real rows, without their means.

    Args:
        tokens: [N] answer tokens. effect: [arms, N] what an example adds to an arm's difference, summed nats, 0 in all.
        rest: [arms, seeds, N] what is left over.
    """

    tokens: np.ndarray
    effect: np.ndarray
    rest: np.ndarray


def rows(case: str, arms: tuple[str, ...] = ("attention", "feedforward"), reference: str = "all") -> Rows:
    """Read one case of the oracle bench."""
    from pyarrow import parquet

    losses: dict[str, dict[int, np.ndarray]] = {}
    tokens = np.zeros(0)
    for row in parquet.read_table(ROWS / f"{case}.parquet").to_pylist():
        losses.setdefault(row["choice"], {})[row["seed"]] = np.asarray(row["nll"], dtype=np.float64)
        tokens = np.asarray(row["tokens"], dtype=np.float64)
    effects, rest = [], []
    for arm in arms:
        x = np.stack([losses[arm][seed] - losses[reference][seed] for seed in sorted(losses[reference])])
        x = (
            x - x.sum(axis=1, keepdims=True) / tokens.sum() * tokens
        )  # seeds' own means come from the curve's study
        effect = x.mean(axis=0)
        effects.append(effect)
        rest.append((x - effect) * np.sqrt(len(x) / (len(x) - 1)))
    return Rows(tokens=tokens, effect=np.stack(effects), rest=np.stack(rest))
