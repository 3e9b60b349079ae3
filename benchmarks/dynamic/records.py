"""One file for each run: what it was, and the loss of every held-out example at every length."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loratlas.files import write_text


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

    @property
    def file(self) -> str:
        """Its file's name."""
        return file_name(self.arm, self.rate, self.seed)

    def write(self, folder: Path) -> None:
        """Keep it, one line for each length."""
        head = {
            "arm": self.arm,
            "rate": self.rate,
            "seed": self.seed,
            "placement": self.placement,
            "trainable": self.trainable,
            "diverged": self.diverged,
            "moves": list(self.moves),
            "seconds": {str(length): value for length, value in self.seconds.items()},
        }
        text = json.dumps(head, ensure_ascii=False)[:-1]
        rows = ",\n".join(
            f'  "{length}": {json.dumps([round(float(x), 3) for x in nll], separators=(",", ":"))}'
            for length, nll in self.lengths.items()
        )
        write_text(folder / self.file, f'{text},\n "lengths": {{\n{rows}\n }}}}\n')


def file_name(arm: str, rate: float, seed: int) -> str:
    """As a record is called.

    >>> file_name("all", 0.005, 1)
    'all-0.005-1.json'
    """
    return f"{arm}-{rate:g}-{seed}.json"


def read_record(path: Path) -> Record:
    """Read what `Record.write` wrote."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    return Record(
        arm=kept["arm"],
        rate=kept["rate"],
        seed=kept["seed"],
        placement=kept["placement"],
        trainable=kept["trainable"],
        lengths={int(length): np.array(nll, dtype=np.float64) for length, nll in kept["lengths"].items()},
        seconds={int(length): value for length, value in kept["seconds"].items()},
        moves=kept["moves"],
        diverged=kept["diverged"],
    )


def read_records(folder: Path) -> list[Record]:
    """All runs of a case."""
    return [
        read_record(path) for path in sorted(folder.glob("*-*-*.json"))
    ]  # case.json and plans.json have no dash
