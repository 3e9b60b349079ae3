"""Accuracy and F1, from the classes that were predicted and those that were right. No model here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

PREDICTIONS = "predictions.parquet"
"""Table beside ``examples.parquet``: ``example``, ``label``, ``predicted``."""


def correct(label: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """1 where the class was predicted, else 0; float64 [N], whose mean is the accuracy."""
    return (label == predicted).astype(np.float64)


def f1_rows(label: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Every row's part in the macro F1: float64 [N] whose mean is the macro F1.

    F1 of class c is a ratio of sums over rows, Σ a / Σ b with a = 2·[label = predicted = c] and b = [label = c] +
    [predicted = c]; the macro F1 is its mean over the classes that occur, as labels or as predictions. Row i is given

        F_c + (a_i − F_c · b_i) / b̄        averaged over c

    the linearisation of a ratio (Cochran 1977, Sampling Techniques, section 6.4), so that differences of macro F1 have
    the same paired test as those of any mean over rows.

    >>> import numpy as np
    >>> round(float(f1_rows(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])).mean()), 4)   # (2/3 + 4/5) / 2
    0.7333
    """
    label, predicted = np.asarray(label), np.asarray(predicted)
    parts = []
    for each in np.union1d(label, predicted):
        here, said = label == each, predicted == each
        a, b = 2.0 * (here & said), here.astype(np.float64) + said
        ratio = a.sum() / b.sum()
        parts.append(ratio + (a - ratio * b) / b.mean())
    return np.mean(parts, axis=0)


def by_class(label: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows, precision, recall and F1 of every class that occurs; None for a share of nothing.

    >>> import numpy as np
    >>> by_class(np.array([0, 0, 1]), np.array([0, 1, 1]), ("no", "yes"))[0]
    {'label': 'no', 'rows': 2, 'precision': 1.0, 'recall': 0.5, 'f1': 0.6666666666666666}
    """
    counts = []
    for each in np.union1d(label, predicted):
        here, said = label == each, predicted == each
        both = int((here & said).sum())
        counts.append(
            {
                "label": names[int(each)],
                "rows": int(here.sum()),
                "precision": both / int(said.sum()) if said.any() else None,
                "recall": both / int(here.sum()) if here.any() else None,
                "f1": 2 * both / int(here.sum() + said.sum()),
            }
        )
    return counts
