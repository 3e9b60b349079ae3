"""Checks before a model is evaluated, and what people read of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas import formats
from loratlas.cli import output
from loratlas.cli.folders import adapter_folder
from loratlas.cli.options import Dtype
from loratlas.errors import ModelError, SettingsError, printable

if TYPE_CHECKING:
    from loratlas.models.task import Task


def adapter_task(adapter: Path | None, source: str) -> Task | None:
    """What an adapter was trained for, as it says itself or as its tensors show; None without one.

    A wrong word for it in the adapter's config is remarked on standard error.

    Args:
        adapter: its folder, or that of its run.
        source: its base.
    """
    if adapter is None:
        return None
    from loratlas.adapters.adapter_task import task_of
    from loratlas.adapters.read_adapter import read_adapter
    from loratlas.models.config import load_config

    recognised = task_of(read_adapter(adapter_folder(adapter)), load_config(source))
    if recognised.remark:
        output.note(recognised.remark)
    return recognised.task


def check_samples(task: Task, *, samples: int, rouge: bool) -> None:
    """Refuse answers that could not be had or scored, before anything is loaded.

    Raises:
        SettingsError: of a classifier, ROUGE-L of no answers, or without its package.
    """
    if samples and task.labels:
        raise SettingsError(
            given="--samples in a classification",
            found="a classifier writes no answers",
            instead="no --samples; accuracy and macro F1 are printed without it",
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
    from loratlas.adapters.trained_heads import refuse_untrained, trained_whole, untrained

    names = untrained(model)
    if not names or (adapter is not None and trained_whole(model)):
        return model if adapter is None else refuse_untrained(model, adapter)
    raise ModelError(
        given="a classification with " + ("a base alone" if adapter is None else f"the adapter {adapter}"),
        found=f"no trained head for these labels ({', '.join(names)} would be random)",
        instead="--adapter DIR, of a classifier that was trained on these labels"
        if adapter is None
        else "an adapter that was trained as a classifier, or --task causal",
    )


def headline(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What people read first of `loratlas.loss_audit.judge.judge`: names and values.

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


def sample_scores(samples: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What people read of answers that a model wrote: names and values."""
    if samples["exact_match"] is None:
        return [("exact match", "no row has a prompt to answer")]
    scores = [("exact match", f"{samples['exact_match']:.2%} of {samples['rows']} rows")]
    if samples.get("rouge_l") is not None:
        scores.append(("ROUGE-L", f"{samples['rouge_l']:.4f}"))
    return scores


def show_samples(samples: Mapping[str, Any]) -> None:
    """Answers side by side: before and after training where both were generated."""
    compared = any("base" in sample for sample in samples["samples"])
    columns = [
        "prompt",
        *(["base"] if compared else []),
        "with the adapter" if compared else "answer",
        "wanted",
    ]
    drawn = output.table(*columns)
    for sample in samples["samples"]:
        base = [sample["base"]] if compared else []
        texts = (_tail(sample["prompt"]), *base, sample["answer"], sample["wanted"])
        drawn.add_row(*(printable(text, SAMPLE_CHARACTERS) for text in texts))
    output.show(drawn)


SAMPLE_CHARACTERS = 160
"""Characters of an answer that a table shows; the JSON has all."""


def _tail(prompt: str) -> str:
    """The end of a prompt, where the question usually is."""
    text = prompt.strip()
    return text if len(text) <= SAMPLE_CHARACTERS else "…" + text[1 - SAMPLE_CHARACTERS :]


def trained_dtype(adapter: Path | None) -> str | None:
    """The dtype that an adapter was trained in, as ``loratlas.json`` says; None where nothing says so."""
    from loratlas.adapters.read_adapter import read_adapter

    return None if adapter is None else read_adapter(adapter_folder(adapter)).dtype


def choose_dtype(asked: Dtype, trained: str | None) -> tuple[str, str]:
    """What an evaluation computes in, and a sentence about it.

    Args:
        asked: of ``--dtype``; ``auto`` takes that of the training.
        trained: of the adapter's training; None: unknown, or no adapter.

    >>> choose_dtype(Dtype.auto, "float32")
    ('float32', 'computed in float32, as the adapter was trained')
    >>> choose_dtype(Dtype.bfloat16, "float32")
    ('bfloat16', 'computed in bfloat16; the adapter was trained in float32, so its losses there differ by rounding')
    """
    if trained is None:
        return asked.chosen, f"computed in {asked.chosen}"
    if asked is Dtype.auto or asked.value == trained:
        return trained, f"computed in {trained}, as the adapter was trained"
    return asked.value, (
        f"computed in {asked.value}; the adapter was trained in {trained}, so its losses there differ by rounding"
    )


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
