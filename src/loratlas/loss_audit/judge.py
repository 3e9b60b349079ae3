"""What a model reaches on rows, by its task, as the plain data that ``--json`` prints and records keep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loratlas.data.batches.packing_proof import prove_packing
from loratlas.data.examples import Encoded
from loratlas.evaluation.class_losses import Classes, classify, read_classes
from loratlas.evaluation.class_metrics import PREDICTIONS, by_class
from loratlas.evaluation.loss_files import EXAMPLES
from loratlas.evaluation.result_folder import ResultFolder
from loratlas.evaluation.score import Scores, score
from loratlas.evaluation.token_scorer import weights_digest
from loratlas.loss_audit.audit import definitions, evidence_of, gaps, residual
from loratlas.loss_audit.catalogue import catalogue, token_mean
from loratlas.loss_audit.definitions import REFERENCE, Definition, LossEvidence, sums
from loratlas.loss_audit.token_table import LossTable
from loratlas.models.task import Task


def judge(
    model: Any, encoded: Encoded, out: Path | None = None
) -> tuple[dict[str, Any], Sequence[Definition]]:
    """Score every row once.

    Args:
        model: on its device.
        encoded: rows of the model's task.
        out: folder for the tables of examples and tokens, or of predictions; earlier ones are replaced.

    Returns:
        The numbers of ``--json``, and the definitions of the loss among them (none for a classifier).

    Raises:
        DataError: no rows. StorageError, OutputError: ``out`` cannot be written.
    """
    if encoded.task.labels:
        classified = classify(model, encoded)
        if out is not None:
            classified.write(out)
        return class_summary(classified, encoded.task), ()
    scores, _, _ = score_all(model, encoded)
    if out is not None:
        scores.write(out)
    chosen = catalogue(evidence_of(scores))
    return summary(scores, among=chosen), chosen


def judge_once(model: Any, encoded: Encoded, out: Path | None) -> tuple[dict[str, Any], Sequence[Definition]]:
    """`judge` of a classifier or an encoder-decoder into a folder of its own, which finds its result there again.

    Raises:
        OutputError: ``out`` holds the result of another evaluation. DataError, StorageError: see `judge`.
    """
    if out is None:
        return judge(model, encoded)
    if not encoded.task.labels:
        scores = score(model, encoded, packed=False, out=out)
        chosen = catalogue(evidence_of(scores))
        return summary(scores, among=chosen), chosen
    identity = {"task": encoded.task.to_json(), "weights": weights_digest(model), "rows": encoded.digest}
    folder = ResultFolder(out, identity)
    if not folder.complete:
        classified = classify(model, encoded)
        folder.finish({EXAMPLES: classified.scores.columns, PREDICTIONS: classified.columns()})
    return class_summary(read_classes(out), encoded.task), ()


def score_all(model: Any, encoded: Encoded) -> tuple[Scores, bool, str]:
    """Score every example once, packed where this model proves that packing is exact.

    Returns:
        The scores, whether they were packed, and why not where they were not.
    """
    why = encoded.task.why_padded
    if why is not None:
        return score(model, encoded, packed=False), False, why
    proof = prove_packing(model)
    return score(model, encoded, packed=proof.exact), proof.exact, proof.reason


def scores_of(table: LossTable) -> Scores:
    """Losses of examples from a table: counted tokens, summed."""
    summed = sums(token_mean(), LossEvidence(tables={REFERENCE: table}))
    return Scores(
        example=summed.example.astype("int32"), n=summed.n.astype("int32"), nll=summed.nll.astype("float64")
    )


def summary(
    scores: Scores, evidence: LossEvidence | None = None, among: Sequence[Definition] | None = None
) -> dict[str, Any]:
    """The loss, its definitions and the gaps between them.

    Args:
        scores: losses of the examples.
        evidence: what else was measured; without it the examples alone.
        among: the definitions; without them all that the evidence can answer.
    """
    source = scores if evidence is None else evidence
    return {
        "token_mean_nll": scores.token_mean_nll,
        "perplexity": scores.perplexity,
        "examples": len(scores.n),
        "labelled_tokens": int(scores.n.sum()),
        "definitions": definitions(source, among=among),
        "gaps": gaps(source, among=among),
        "residual": residual(source, among=among),
    }


def class_summary(classified: Classes, task: Task) -> dict[str, Any]:
    """The numbers of a classifier: loss per row, accuracy, macro F1, and each class by itself."""
    return {
        "mean_nll": classified.scores.token_mean_nll,
        "accuracy": classified.accuracy,
        "macro_f1": classified.macro_f1,
        "examples": len(classified.label),
        "classes": by_class(classified.label, classified.predicted, task.labels),
    }
