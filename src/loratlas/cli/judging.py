"""What a model reaches on rows, by its task: numbers for JSON, and the few of them that people read first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas import formats
from loratlas.cli import output
from loratlas.cli.folders import adapter_folder
from loratlas.errors import ModelError, SettingsError
from loratlas.modeling import unwrap

if TYPE_CHECKING:
    from loratlas.data.examples import Encoded
    from loratlas.evaluation.class_losses import Classes
    from loratlas.evaluation.score import Scores
    from loratlas.loss_audit.definitions import Definition, Evidence
    from loratlas.models.task import Task


def adapter_task(adapter: Path | None) -> Task | None:
    """What an adapter was trained for, as it says itself; None without one, or for one from another tool."""
    from loratlas.adapters.adapter_files import read_about
    from loratlas.models.task import Task

    if adapter is None:
        return None
    told = (read_about(adapter_folder(adapter)).get("extra") or {}).get("task")
    return Task.from_json(told) if told else None


def check_samples(task: Task, *, samples: int, rouge: bool) -> None:
    """Refuse answers that could not be had or scored, before anything is loaded.

    Raises:
        SettingsError: of a classifier, ROUGE-L of no answers, or without its package.
    """
    if samples and task.labels:
        raise SettingsError(
            given="--samples in a classification",
            found="a classifier writes no answers",
            instead="no --samples; accuracy and macro F1 are told as they are",
        )
    if rouge and not samples:
        raise SettingsError(
            given="--rouge without --samples", found="no answers to score", instead="--samples 50"
        )
    if rouge:
        from loratlas.evaluation.rouge import rouge_l

        rouge_l()


def check_head(model: Any, adapter: Path | None) -> Any:
    """A classifier whose head was trained: by the adapter, or with the base.

    Returns:
        The model.

    Raises:
        ModelError: its head is what was drawn when it was loaded.
    """
    from loratlas.adapters.trained_heads import heads_of, trained_whole
    from loratlas.models.heads import new_head

    inner = unwrap(model)
    if not new_head(inner) or trained_whole(model):
        return model
    raise ModelError(
        given="a classification with " + ("a base alone" if adapter is None else f"the adapter {adapter}"),
        found=f"no trained head for these labels ({', '.join(heads_of(inner))} would be random)",
        instead="--adapter DIR, of a classifier that was trained on these labels"
        if adapter is None
        else "an adapter that was trained as a classifier, or --task causal",
    )


def judge(
    model: Any, encoded: Encoded, out: Path | None = None
) -> tuple[dict[str, Any], Sequence[Definition]]:
    """Every row once: the numbers of ``--json``, and the definitions of the loss among them.

    Args:
        model: on its device.
        encoded: rows of the model's task.
        out: folder for the tables of examples and tokens, or of predictions.
    """
    if encoded.task.labels:
        from loratlas.evaluation.class_losses import classify

        found = classify(model, encoded)
        if out is not None:
            found.write(out)
        return class_summary(found, encoded.task), ()
    from loratlas.loss_audit.audit import evidence_of
    from loratlas.loss_audit.catalogue import catalogue

    scores, _, _ = score_all(model, encoded)
    if out is not None:
        scores.write(out)
    chosen = catalogue(evidence_of(scores))
    return summary(scores, among=chosen), chosen


def score_all(model: Any, encoded: Encoded) -> tuple[Scores, bool, str]:
    """Score every example once, packed where this model proves that packing is exact.

    Returns:
        The scores, whether they were packed, and why not where they were not.
    """
    from loratlas.data.packing import prove_packing
    from loratlas.evaluation.score import score

    why = encoded.task.why_padded
    if why is not None:
        return score(model, encoded, packed=False), False, why
    proof = prove_packing(model)
    return score(model, encoded, packed=proof.exact), proof.exact, proof.reason


def summary(
    scores: Scores, evidence: Evidence | None = None, among: Sequence[Definition] | None = None
) -> dict[str, Any]:
    """The numbers of `eval --json`: the loss, its definitions and the gaps between them.

    Args:
        scores: losses of the examples.
        evidence: what else was measured; without it the examples alone.
        among: the definitions; without them all that the evidence can answer.
    """
    from loratlas.loss_audit.audit import definitions, gaps, residual

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


def class_summary(found: Classes, task: Task) -> dict[str, Any]:
    """The numbers of a classifier: loss per row, accuracy, macro F1, and each class by itself."""
    from loratlas.evaluation.class_metrics import by_class

    return {
        "mean_nll": found.scores.token_mean_nll,
        "accuracy": found.accuracy,
        "macro_f1": found.macro_f1,
        "examples": len(found.label),
        "classes": by_class(found.label, found.predicted, task.labels),
    }


def headline(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What people read first of `judge`: names and values.

    >>> headline({"token_mean_nll": 0.5, "perplexity": 1.6487})
    [('loss', '0.5000'), ('perplexity', '1.649')]
    """
    if "accuracy" in facts:
        return [
            ("loss", f"{facts['mean_nll']:.4f}"),
            ("accuracy", f"{facts['accuracy']:.2%}"),
            ("macro F1", f"{facts['macro_f1']:.4f}"),
        ]
    return [("loss", f"{facts['token_mean_nll']:.4f}"), ("perplexity", f"{facts['perplexity']:.3f}")]


def told(samples: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What people read of answers that a model wrote: names and values."""
    if samples["exact_match"] is None:
        return [("exact match", "no row has a prompt to answer")]
    found = [("exact match", f"{samples['exact_match']:.2%} of {samples['rows']} rows")]
    if samples.get("rouge_l") is not None:
        found.append(("ROUGE-L", f"{samples['rouge_l']:.4f}"))
    return found


def show_classes(facts: Mapping[str, Any]) -> None:
    """What `class_summary` found, as a sentence and a table."""
    output.say(
        f"accuracy {facts['accuracy']:.2%}, macro F1 {facts['macro_f1']:.4f}, loss {facts['mean_nll']:.4f} nats "
        f"per row ({formats.count(facts['examples'])} rows)"
    )
    drawn = output.table(
        "class", ("rows", "right"), ("precision", "right"), ("recall", "right"), ("F1", "right")
    )
    for each in facts["classes"]:
        shares = (each["precision"], each["recall"], each["f1"])
        drawn.add_row(
            each["label"], formats.count(each["rows"]), *("–" if s is None else f"{s:.4f}" for s in shares)
        )
    output.show(drawn)
