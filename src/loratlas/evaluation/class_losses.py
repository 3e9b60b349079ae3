"""The loss of a classifier on every row, and the class that it predicts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loratlas.data.batches.batching import evaluation_batches
from loratlas.data.examples import Encoded
from loratlas.errors import DataError
from loratlas.evaluation.class_metrics import PREDICTIONS, correct, f1_rows
from loratlas.evaluation.cross_entropy import nll
from loratlas.evaluation.eval_precision import evaluating
from loratlas.evaluation.loss_files import read_columns
from loratlas.evaluation.score import Scores, read_scores
from loratlas.evaluation.token_scorer import MAX_TOKENS
from loratlas.modeling import device_of


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
        """Write ``examples.parquet``, `PREDICTIONS` and ``digests.json``, each whole or not at all.

        Raises:
            StorageError, OutputError: the disk is full or not writable.
        """
        self.scores.write(folder, **{PREDICTIONS.removesuffix(".parquet"): self.columns()})


def read_classes(folder: Path) -> Classes:
    """What `Classes.write` or `loratlas eval --out` left in a folder.

    Raises:
        DataError: a table is missing, damaged or lacks a column.
    """
    columns = read_columns(folder, PREDICTIONS, ("label", "predicted"))
    return Classes(scores=read_scores(folder), **columns)


def classify(model: Any, encoded: Encoded, *, max_tokens: int = MAX_TOKENS) -> Classes:
    """Losses and classes of every example, in the order of ``encoded``.

    Args:
        model: a classifier, bare or as a `PeftModel`; put back into the mode it was in.
        encoded: rows of a classification.
        max_tokens: tokens per forward pass, padding included; the result does not depend on it.

    Raises:
        DataError: no examples.
    """
    from loratlas.data.batches.packing import forward

    if not len(encoded):
        raise DataError(given=encoded.source, found="no examples to evaluate", instead="rows with a label")
    device = device_of(model)
    total = len(encoded)
    losses, label, predicted = np.zeros(total), np.zeros(total, dtype=np.int32), np.zeros(total, np.int32)
    with evaluating(model):
        for batch in evaluation_batches(encoded, max_tokens=max_tokens, packed=False):
            batch = batch.to(device)
            logits = forward(model, batch).float()
            rows = list(batch.rows)
            losses[rows] = nll(logits, batch.answers).cpu().numpy()
            label[rows] = batch.answers.cpu().numpy()
            predicted[rows] = logits.argmax(-1).cpu().numpy()
    example, n = np.arange(total, dtype=np.int32), np.ones(total, dtype=np.int32)
    return Classes(scores=Scores(example=example, n=n, nll=losses), label=label, predicted=predicted)
