"""What DPO is judged by: for every pair its loss, its margin, and whether the preferred answer is ahead.

With π the model, r the bare base, and log-probabilities summed over an answer's tokens:

    margin = β · [(log π(chosen) − log r(chosen)) − (log π(rejected) − log r(rejected))]
    loss   = −ln σ(margin)                                    nats per pair; ln 2 of the base itself
    ahead  = 1 where margin > 0, ½ where it is 0, else 0      its mean is the preference accuracy

Source: R. Rafailov et al. (2023), Direct Preference Optimization (arXiv:2305.18290), equation 7.
Departures: a margin of 0 counts half, so that the bare base is right in half of the pairs; TRL counts it as wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from loratlas.data.examples import Encoded
from loratlas.data.preferences import split_pairs
from loratlas.evaluation.score import Scores, score

PREFERENCES = "preferences.parquet"
"""Table beside ``examples.parquet``: ``example``, ``margin``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """Every pair's loss and margin.

    Args:
        scores: n is 1 everywhere; the mean is in nats per pair.
        margin: float64 [N], nats times β.
    """

    scores: Scores
    margin: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of the pairs whose preferred answer is ahead."""
        return float(ahead(self.margin).mean())

    def columns(self) -> dict[str, np.ndarray]:
        """The columns of `PREFERENCES`."""
        return {"example": self.scores.example, "margin": self.margin}


def ahead(margin: np.ndarray) -> np.ndarray:
    """1 where the preferred answer is ahead, ½ where neither is; float64 [N].

    >>> import numpy as np
    >>> ahead(np.array([0.2, 0.0, -3.0])).tolist()
    [1.0, 0.5, 0.0]
    """
    return (np.sign(margin) + 1.0) / 2.0


def answer_gaps(model: Any, pairs: Encoded, *, packed: bool) -> np.ndarray:
    """Log-probability of the preferred answer minus that of the other, float64 [N], nats.

    Args:
        model: bare, or with its adapter.
        pairs: of `loratlas.data.preferences.encode_pairs`.
        packed: see :func:`loratlas.evaluation.score.score`.
    """
    chosen, rejected = (score(model, side, packed=packed).nll for side in split_pairs(pairs))
    return rejected - chosen


def judge_preferences(gaps: np.ndarray, base: np.ndarray, *, beta: float) -> Preferences:
    """Losses and margins of pairs.

    Args:
        gaps: of the model, see `answer_gaps`. base: of the bare base.
        beta: how much a nat of the gap counts.

    >>> import numpy as np
    >>> judged = judge_preferences(np.array([1.0, 0.0]), np.array([0.0, 0.0]), beta=0.1)
    >>> judged.accuracy, [round(float(loss), 4) for loss in judged.scores.nll]
    (0.75, [0.6444, 0.6931])
    """
    margin = beta * (gaps - base)
    total = len(margin)
    example, n = np.arange(total, dtype=np.int32), np.ones(total, dtype=np.int32)
    return Preferences(scores=Scores(example=example, n=n, nll=np.logaddexp(0.0, -margin)), margin=margin)
