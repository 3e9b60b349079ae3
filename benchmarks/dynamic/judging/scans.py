"""What plans of a scan before training were worth, on the kept cases that no score was chosen on.

Losses are those of the bench's first edition, kept row by row: presets, single roles, random plans and plans by scores,
all at equal parameters, three seeds. The trials' own steps (160 of 16 rows) are not given to `all` here, so that this
flatters a scan.

`probe_yield` was chosen on the four cases of `SEEN`. On the three held-out ones `probe_energy` lost less, so that it
decides now, and these three have a part in that. What it loses on the four, which preferred another, is said as well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from benchmarks.dynamic.arms import REFERENCE
from benchmarks.dynamic.judging.judge import (
    LEVEL,
    CaseLosses,
    Interval,
    difference,
    noise_floor,
    share_lost,
)

KEPT = Path(__file__).parents[2] / "results" / "oracle"

UNSEEN = ("gpt2-mini-nl2bash-all1", "gpt2-mini-retrieval-all1")
"""Cases whose losses no score was chosen by."""

THIRD = KEPT / "unseen-gsm8k.json"
"""One more, trained afterwards as a study. It has nine plans, where the others have thirty, and so a best plan that is
easier to match; and its losses are kept by seed, not by row. So it has differences to `all`, and no share."""

SEEN = tuple(f"llama-mini-{task}-all1" for task in ("nl2bash", "e2e", "facts-300", "retrieval"))
"""Cases that chose `CHOSEN` and the length of its trials."""

CHOSEN = "probe_yield"

COLUMNS = (
    "probe_yield",
    "probe_descent",
    "probe_energy",
    "probe",
    "gradient",
    "activation",
    "alignment",
    "attention",
    "spectrum",
)


def case_of(name: str) -> CaseLosses:
    """A kept case; choices with the same table have the same losses."""
    record = json.loads((KEPT / f"{name}.json").read_text(encoding="utf-8"))
    losses, tokens = kept_losses(KEPT / f"{name}.parquet")
    seeds = sorted(losses[REFERENCE])
    tables = {choice: np.stack([by_seed[seed] for seed in seeds]) for choice, by_seed in losses.items()}
    for choice, chosen in record["choices"].items():
        if chosen["same_as"] in tables:
            tables[choice] = tables[chosen["same_as"]]
    return CaseLosses(
        losses=tables, tokens=tokens, steps=record["steps"], curve={record["steps"]: tables[REFERENCE]}
    )


def kept_losses(path: Path) -> tuple[dict[str, dict[int, np.ndarray]], np.ndarray]:
    """(choice → seed → summed losses of the examples, counted tokens of each)."""
    from pyarrow import parquet

    by_name: dict[str, dict[int, np.ndarray]] = {}
    tokens = np.zeros(0)
    for row in parquet.read_table(path).to_pylist():
        by_name.setdefault(row["choice"], {})[row["seed"]] = np.array(row["nll"], dtype=np.float64)
        tokens = np.array(row["tokens"], dtype=np.float64)
    return by_name, tokens


def over_seeds(differences: np.ndarray) -> Interval:
    """Mean of the seeds' differences [S], with Student's interval; rows of the evaluation are as they are."""
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    half = float(student.ppf(0.5 + LEVEL / 2, len(differences) - 1) * error)
    mean = float(differences.mean())
    return Interval(value=mean, low=mean - half, high=mean + half)


def third() -> dict[str, Any]:
    """The held-out case of `THIRD`: column → difference to `all`, nats per token."""
    record = json.loads(THIRD.read_text(encoding="utf-8"))
    losses = {
        arm["name"]: {run["seed"]: run["nll"] for run in arm["runs"]}
        for arm in record["arms"]
        if not arm["diverged"]
    }
    reference = losses[record["reference"]]
    return {
        "case": "llama-mini-gsm8k-all1",
        "plans": len(record["arms"]),
        "seeds": len(reference),
        "minus_all": {
            column: over_seeds(
                np.array([losses[column][seed] - reference[seed] for seed in reference])
            ).to_json()
            for column in COLUMNS
            if column in losses
        },
    }


def seen() -> dict[str, Any]:
    """What other columns than the chosen one lost on the cases of `SEEN`, and the case where each lost most."""
    cases = {name: case_of(name) for name in SEEN}
    listed = list(cases.values())
    columns: dict[str, Any] = {}
    for column in COLUMNS:
        if column == CHOSEN:  # what a choice was made on says nothing of what was chosen
            continue
        arm = f"rule {column}"
        to_all = {name: difference(case, arm) for name, case in cases.items()}
        worst = max(to_all, key=lambda name: to_all[name].value)
        columns[column] = {
            "share_lost": share_lost(listed, [arm] * len(listed)).to_json(),
            "minus_all": {name: found.to_json() for name, found in to_all.items()},
            "worst": worst,
        }
    return {"cases": list(SEEN), "chose": CHOSEN, "columns": columns}


def scans() -> dict[str, Any]:
    """Column → share of (all − best) lost, pooled, and each case's difference to `all`; `third`, `seen`."""
    cases = {name: case_of(name) for name in UNSEEN}
    listed = list(cases.values())
    return {
        "cases": list(UNSEEN),
        "noise_floor": noise_floor(listed),
        "columns": {
            column: {
                "share_lost": share_lost(listed, [f"rule {column}"] * len(listed)).to_json(),
                "minus_all": {
                    name: difference(case, f"rule {column}").to_json() for name, case in cases.items()
                },
            }
            for column in COLUMNS
            if all(f"rule {column}" in case.losses for case in listed)
        },
        "third": third(),
        "seen": seen(),
    }


def said(found: Mapping[str, Any]) -> dict[str, Any]:
    """What the product says of scans, as `loratlas.scan.advice` reads it.

    Args:
        found: of `scans`.
    """
    outside = {
        column: {
            **entry["share_lost"],
            "worst": {"case": readable(entry["worst"]), **entry["minus_all"][entry["worst"]]},
        }
        for column, entry in found["seen"]["columns"].items()
    }
    return {
        "cases": [readable(name) for name in found["cases"]],
        "columns": {column: entry["share_lost"] for column, entry in found["columns"].items()},
        "third": {**found["third"], "case": readable(found["third"]["case"])},
        "seen": {"cases": len(found["seen"]["cases"]), "chose": found["seen"]["chose"], "columns": outside},
    }


def readable(name: str) -> str:
    """As sentences call a case.

    >>> readable("gpt2-mini-nl2bash-all1")
    'gpt2-mini nl2bash'
    """
    return name.removesuffix("-all1").replace("mini-", "mini ")
