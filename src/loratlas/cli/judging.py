"""What commands that judge a model share: options, and what people read of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from loratlas import formats
from loratlas.cli import options, output
from loratlas.errors import printable

Window = Annotated[
    int | None,
    typer.Option(
        "--window",
        metavar="TOKENS",
        min=2,
        help="Also the loss in windows of so many tokens.",
        rich_help_panel=options.DATA,
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        "--stride",
        metavar="TOKENS",
        min=1,
        help="How far windows advance; by their length unless given.",
        rich_help_panel=options.DATA,
    ),
]


def headline(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What people read first of `loratlas.loss_audit.judge.judge`: names and values.

    >>> headline({"token_mean_nll": 0.5, "perplexity": 1.6487})
    [('loss', '0.5000'), ('perplexity', '1.649')]
    """
    if "accuracy" in numbers:
        return [
            ("loss", f"{numbers['mean_nll']:.4f}"),
            ("accuracy", f"{numbers['accuracy']:.2%}"),
            ("macro F1", f"{numbers['macro_f1']:.4f}"),
        ]
    return [("loss", f"{numbers['token_mean_nll']:.4f}"), ("perplexity", f"{numbers['perplexity']:.3f}")]


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


def show_classes(numbers: Mapping[str, Any]) -> None:
    """What `class_summary` found, as a sentence and a table."""
    output.say(
        f"accuracy {numbers['accuracy']:.2%}, macro F1 {numbers['macro_f1']:.4f}, loss {numbers['mean_nll']:.4f} nats "
        f"per row ({formats.count(numbers['examples'])} rows)"
    )
    drawn = output.table(
        "class", ("rows", "right"), ("precision", "right"), ("recall", "right"), ("F1", "right")
    )
    for each in numbers["classes"]:
        shares = (each["precision"], each["recall"], each["f1"])
        drawn.add_row(
            each["label"], formats.count(each["rows"]), *("–" if s is None else f"{s:.4f}" for s in shares)
        )
    output.show(drawn)
