"""One line for each run: what it was, and the loss of every held-out example at every length."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loratlas.files import write_text

RUNS = "runs.jsonl"
"""Of a case's folder."""

MOVED = ("step", "path", "before", "after", "loss_before", "loss_after")
"""What is kept of a move."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A run that ended.

    Args:
        arm, rate, seed: which. placement: that it began with, every rank written. trainable: at its end.
        lengths: T → summed loss of every held-out example [N], nats; a length that diverged is missing.
        seconds: T → seconds of training until then, those of other lengths' decays excluded.
        moves: changes of rank inside the run, as plain data.
        diverged: whether it did.
    """

    arm: str
    rate: float
    seed: int
    placement: str
    trainable: int
    lengths: Mapping[int, np.ndarray]
    seconds: Mapping[int, float] = field(default_factory=dict)
    moves: Sequence[Mapping[str, Any]] = ()
    diverged: bool = False

    def write(self, folder: Path) -> None:
        """Add it to the folder's file, a line each."""
        result = {
            "arm": self.arm,
            "rate": self.rate,
            "seed": self.seed,
            "placement": self.placement,
            "trainable": self.trainable,
            "diverged": self.diverged,
            "moves": [[move[key] for key in MOVED] for move in self.moves],
            "seconds": {str(length): value for length, value in self.seconds.items()},
            "lengths": {
                str(length): [round(float(loss), 3) for loss in nll] for length, nll in self.lengths.items()
            },
        }
        path = folder / RUNS
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        write_text(path, before + json.dumps(result, ensure_ascii=False, separators=(",", ":")) + "\n")


def read_records(folder: Path) -> list[Record]:
    """All runs of a case, in the order in which they ended."""
    path = folder / RUNS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [_record(json.loads(line)) for line in lines]


def _record(kept: Mapping[str, Any]) -> Record:
    return Record(
        arm=kept["arm"],
        rate=kept["rate"],
        seed=kept["seed"],
        placement=kept["placement"],
        trainable=kept["trainable"],
        lengths={int(length): np.array(nll, dtype=np.float64) for length, nll in kept["lengths"].items()},
        seconds={int(length): value for length, value in kept["seconds"].items()},
        moves=[dict(zip(MOVED, move, strict=True)) for move in kept["moves"]],
        diverged=kept["diverged"],
    )
