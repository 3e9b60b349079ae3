"""What a classifier says of every row: the loss of the right class, and the class that it holds most likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loratlas.data.batches import evaluation_batches
from loratlas.data.encode import Encoded
from loratlas.errors import DataError
from loratlas.evaluation.cross_entropy import nll
from loratlas.evaluation.precision import evaluating
from loratlas.evaluation.storage import read_columns, write_table
from loratlas.evaluation.tokens import MAX_TOKENS, Scores

PREDICTIONS = "predictions.parquet"
"""Table beside ``examples.parquet``: ``example``, ``label``, ``predicted``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """Losses and classes of every example.

    Args:
        scores: n is 1 everywhere; the mean is in nats per row.
        label: int32 [N]; the right class.
        predicted: int32 [N]; the class of the largest logit, the first of equal ones.
    """

    scores: Scores
    label: np.ndarray
    predicted: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of the rows whose class is predicted."""
        return float(correct(self.label, self.predicted).mean())

    @property
    def macro_f1(self) -> float:
        """See `f1_rows`."""
        return float(f1_rows(self.label, self.predicted).mean())

    def columns(self) -> dict[str, np.ndarray]:
        """The columns of `PREDICTIONS`."""
        return {"example": self.scores.example, "label": self.label, "predicted": self.predicted}

    def write(self, folder: Path) -> None:
        """Write ``examples.parquet`` and `PREDICTIONS`, each whole or not at all.

        Raises:
            StorageError: the disk is full or not writable.
        """
        self.scores.write(folder)
        write_table(folder / PREDICTIONS, self.columns())


def classify(model: Any, encoded: Encoded, *, max_tokens: int = MAX_TOKENS) -> Classes:
    """Losses and classes of every example, in the order of ``encoded``.

    Args:
        model: a classifier, bare or as a `PeftModel`; put back into the mode it was in.
        encoded: rows of a classification.
        max_tokens: places per forward pass; the result does not depend on it.

    Raises:
        DataError: no examples.
    """
    from loratlas.data.packing import forward

    if not len(encoded):
        raise DataError(given=encoded.source, found="no examples to evaluate", instead="rows with a label")
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    device = inner.get_input_embeddings().weight.device
    total = len(encoded)
    losses, label, predicted = np.zeros(total), np.zeros(total, dtype=np.int32), np.zeros(total, np.int32)
    for batch in evaluation_batches(encoded, max_tokens=max_tokens, packed=False):
        with evaluating(model):
            logits = forward(model, batch.to(device)).float()
            found = nll(logits, batch.to(device).answers)
        rows = list(batch.rows)
        losses[rows] = found.cpu().numpy()
        label[rows] = batch.answers.numpy()
        predicted[rows] = logits.argmax(-1).cpu().numpy()
    example, n = np.arange(total, dtype=np.int32), np.ones(total, dtype=np.int32)
    return Classes(scores=Scores(example=example, n=n, nll=losses), label=label, predicted=predicted)


def read_classes(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(label, predicted) that `Classes.write` left in a folder, by example.

    Raises:
        DataError: no such file, or one without its columns.
    """
    found = read_columns(folder, PREDICTIONS, ("example", "label", "predicted"))
    order = np.argsort(found["example"], kind="stable")
    return found["label"][order], found["predicted"][order]


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
    told = []
    for each in np.union1d(label, predicted):
        here, said = label == each, predicted == each
        both = int((here & said).sum())
        told.append(
            {
                "label": names[int(each)],
                "rows": int(here.sum()),
                "precision": both / int(said.sum()) if said.any() else None,
                "recall": both / int(here.sum()) if here.any() else None,
                "f1": 2 * both / int(here.sum() + said.sum()),
            }
        )
    return told
