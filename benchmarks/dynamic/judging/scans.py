"""What plans of a scan before training were worth, on the kept cases that no score was chosen on.

Losses are those of the bench's first edition, kept row by row: presets, single roles, random plans and plans by scores,
all at equal parameters, three seeds. The trials' own steps (160 of 16 rows) are not given to `all` here, so that this
flatters a scan.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dynamic.arms import REFERENCE
from benchmarks.dynamic.judging.judge import CaseLosses, difference, noise_floor, share_lost

KEPT = Path(__file__).parents[2] / "results" / "oracle"

UNSEEN = ("gpt2-mini-nl2bash-all1", "gpt2-mini-retrieval-all1")
"""Cases whose losses no score was chosen by."""

SEEN = tuple(f"llama-mini-{task}-all1" for task in ("nl2bash", "e2e", "facts-300", "retrieval"))
"""Cases that chose `probe_yield` and the length of its trials."""

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


def scans() -> dict[str, Any]:
    """Column → share of (all − best) lost, pooled; and each case's difference to `all`."""
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
    }
