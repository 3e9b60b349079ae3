"""What `eval` prints of a loss: a few lines, and the tables of its definitions and gaps on request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loratlas import formats
from loratlas.cli import output

if TYPE_CHECKING:
    from loratlas.loss_audit.definitions import Definition


def show_loss(numbers: Mapping[str, Any], computed: str, *, tables: bool) -> None:
    """The loss, what a trainer would print for it, and how it was computed.

    Args:
        numbers: of `loratlas.loss_audit.judge.summary`.
        computed: how, in a phrase.
        tables: whether the tables of definitions follow.
    """
    output.say(
        f"loss {numbers['token_mean_nll']:.4f} nats per token, perplexity {numbers['perplexity']:.3f} "
        f"({formats.count(numbers['labelled_tokens'])} tokens of {formats.count(numbers['examples'])} examples)"
    )
    if tables:
        output.say(computed)
        return
    values = numbers["definitions"]
    batch = next((name for name in values if name.startswith("batch_mean_") and name[11:].isdigit()), None)
    if batch is not None:
        size = batch.removeprefix("batch_mean_")
        output.say(
            f"as a Trainer prints it, mean of batches of {size}: {values[batch]:.4f}; "
            f"of examples: {values['example_mean']:.4f}"
        )
    output.say(computed)
    output.say(f"{len(values)} definitions of the loss, and why they differ: --definitions")


def show_definitions(numbers: Mapping[str, Any], chosen: Sequence[Definition]) -> None:
    """Every definition with its value, and what takes the token mean to each."""
    drawn = output.table("definition", ("value", "right"), "used by")
    for definition in chosen:
        value = numbers["definitions"][definition.name]
        drawn.add_row(definition.name.replace("_", " "), _number(value), definition.used_by)
    output.show(drawn)
    if not numbers["gaps"]:
        return
    drawn = output.table("why they differ", ("nats", "right"))
    for gap in numbers["gaps"]:
        start, end = (gap[side].replace("_", " ") for side in ("from", "to"))
        words = gap["term"] if "→" in gap["term"] else f"{start} → {end}: {gap['term']}"
        if "estimate" in gap:
            words += f" (to second order {gap['estimate']:+.4f})"
        drawn.add_row(words, f"{gap['nats']:+.6f}")
    drawn.add_row("left unexplained", f"{numbers['residual']:+.1e}")
    output.show(drawn)


def _number(value: float) -> str:
    return f"{value:,.4f}" if abs(value) < 1e9 else f"{value:.4e}"
