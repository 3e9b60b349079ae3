"""What a model can read: positions, and rows of its embedding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from loratlas.data.examples import Encoded, Example
from loratlas.errors import DataError


def fitted(encoded: Encoded, config: Any) -> Encoded:
    """The examples as a model can read them: refused where it has no positions or no embeddings for them.

    Args:
        encoded: the rows.
        config: of the model; one that names no number of positions (ALiBi, say) has no limit of them.

    Returns:
        The same; where the embedding has no row for the id that fills padded positions (they are looked up, never
        attended to), with 0 for that.

    Raises:
        DataError: an example is longer, or has a token that the embedding has no row for.
    """
    size = embedding_rows(config)
    _check_ids(encoded, size)
    limit = _positions(config.get_text_config())
    longest = max((max(_sides(example)) for example in encoded.examples), default=0)
    if isinstance(limit, int) and 0 < limit < longest:
        raise DataError(
            given=f"{encoded.source}, with examples of up to {longest:,} tokens",
            found=f"a model of {limit:,} positions",
            instead=f"a largest length (--max-length, max_length) of at most {limit}",
        )
    return encoded if size is None or encoded.pad_id < size else replace(encoded, pad_id=0)


def embedding_rows(config: Any) -> int | None:
    """Tokens that a model has embeddings for; None where its config names no number."""
    size = getattr(config.get_text_config(), "vocab_size", None)
    return size if isinstance(size, int) and size > 0 else None


def _check_ids(encoded: Encoded, size: int | None) -> None:
    if size is None:
        return
    for example in encoded.examples:
        largest = int(example.input_ids.max(initial=-1))
        if largest >= size:
            tokens = max(encoded.tokenizer_size, largest + 1)
            raise DataError(
                given=f"{encoded.source}, row {example.row + 1}: token {largest:,} of a tokenizer of {tokens:,} tokens",
                found=f"an embedding of {size:,} tokens",
                instead="the tokenizer that the model was trained with, or the model with its embedding resized "
                "(resize_token_embeddings) and saved",
            )


_BEHIND_PADDING = ("roberta", "camembert", "xmod", "data2vec-text", "mpnet", "longformer")
"""Types, or what their names contain, whose positions begin behind the id of the pad token."""


def _positions(config: Any) -> Any:
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and any(name in config.model_type for name in _BEHIND_PADDING):
        return limit - (config.pad_token_id or 0) - 1
    return limit


def _sides(example: Example) -> tuple[int, ...]:
    """Tokens that share positions: all of them, or the source's and the target's."""
    return (len(example),) if example.source is None else (example.source, len(example) - example.source)
