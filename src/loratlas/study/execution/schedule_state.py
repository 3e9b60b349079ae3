"""Where a study stands between two runs, whichever edition of the protocol it follows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loratlas.study.execution.ledger import Key

BASE = Key(phase="base")


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Where a study stands.

    Args:
        pending: runs that can start now, in order.
        planned: how many runs are known to be needed by now, finished ones included.
        rates: the grid of learning rates, extensions included.
        chosen: arm → its learning rate; empty while tuning goes on.
        at_edge: arms whose best rate lies beside a rate that diverged, or beyond what could be tried.
        near: arm → its three rates around the optimum; empty in the first edition.
        near_losses: arm → [3, seeds] tuning losses there, nats per token; infinite where a run diverged.
        share: arm → rate share, nats² per token²; see `loratlas.study.execution.rate_choice`.
    """

    pending: tuple[Key, ...]
    planned: int
    rates: tuple[float, ...]
    chosen: Mapping[str, float]
    at_edge: frozenset[str]
    near: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    near_losses: Mapping[str, np.ndarray] = field(default_factory=dict)
    share: Mapping[str, float] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return not self.pending


def nll(record: Mapping[str, Any]) -> float:
    """The token mean of a finished run; infinity for a diverged one."""
    value = record.get("nll")
    return math.inf if record.get("diverged") or value is None else float(value)
