"""One pass over the rows: the loss of every counted token, from which all else is computed without the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loratlas.data.batching import evaluation_batches
from loratlas.data.examples import Encoded
from loratlas.errors import DataError
from loratlas.evaluation.eval_precision import evaluating
from loratlas.evaluation.parquet import SEGMENTS, TokenWriter, read_columns, write_examples, write_tokens
from loratlas.modeling import unwrap

MAX_TOKENS = 2048
"""Tokens of one forward pass."""

MAX_LOGITS = 2**26
"""Numbers in one matrix of logits: wide vocabularies get smaller batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """One row per counted token, ordered by example and position.

    Args:
        example: int32; index of the example among those scored.
        position: int32; place of the predicted token in its example, from 1.
        segment: int8; index into `loratlas.evaluation.parquet.SEGMENTS`.
        nll: float32; −log p of that token, nats.
    """

    example: np.ndarray
    position: np.ndarray
    segment: np.ndarray
    nll: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Losses of every example.

    Args:
        example: int32 [N]; 0 to N − 1, the order of the encoded examples.
        n: int32 [N]; counted tokens.
        nll: float64 [N]; summed over the counted tokens, nats.
        tokens: the table of tokens, unless it was streamed to a file.
    """

    example: np.ndarray
    n: np.ndarray
    nll: np.ndarray
    tokens: Tokens | None = None

    @property
    def token_mean_nll(self) -> float:
        """The loss: Σ nll / Σ n, nats per token."""
        return float(self.nll.sum() / self.n.sum())

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that leaves the range of numbers."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.token_mean_nll))

    def write(self, folder: Path) -> None:
        """Write ``examples.parquet`` and, if the tokens are held, ``tokens.parquet``; each whole or not at all.

        Raises:
            StorageError: the disk is full or not writable.
        """
        write_examples(folder, example=self.example, n=self.n, nll=self.nll)
        if self.tokens is not None:
            write_tokens(folder, self.tokens)


def read_scores(folder: Path) -> Scores:
    """What `Scores.write`, `score(out=…)` or `loratlas eval --out` left in a folder; of its tokens the counted ones.

    Raises:
        DataError: no ``examples.parquet`` there, or one without its columns.
    """
    from pyarrow import parquet

    examples = read_columns(folder, "examples.parquet", ("example", "n", "nll"))
    tokens = None
    if (folder / "tokens.parquet").exists():
        names = ("example", "position", "segment", "nll")
        columns = read_columns(folder, "tokens.parquet", names)
        if (
            "counted" in parquet.read_schema(folder / "tokens.parquet").names
        ):  # a whole table, prompts included
            kept = read_columns(folder, "tokens.parquet", ("counted",))["counted"]
            columns = {name: column[kept] for name, column in columns.items()}
        order = np.lexsort((columns["position"], columns["example"]))
        tokens = Tokens(**{name: column[order] for name, column in columns.items()})
    return Scores(**examples, tokens=tokens)


def score(
    model: Any,
    encoded: Encoded,
    *,
    packed: bool,
    max_tokens: int = MAX_TOKENS,
    out: Path | None = None,
) -> Scores:
    """Losses of every counted token, log-probabilities in float32, sums in float64.

    Examples come longest first, in batches of at most ``max_tokens`` places; the result depends neither on that
    number nor on packing (law 6). Logits are made at the counted places of one batch at a time.

    Args:
        model: bare or as a `PeftModel`; put back into the mode it was in.
        encoded: the rows.
        packed: end to end (only where `loratlas.data.packing.prove_packing` says exact) or side by side.
        max_tokens: places per forward pass.
        out: stream the table of tokens to ``tokens.parquet`` in this folder, and write ``examples.parquet`` when all
            are done; then memory does not grow with the number of tokens, and ``Scores.tokens`` is None.

    Returns:
        The scores, in the order of ``encoded``.

    Raises:
        DataError: no examples.
        StorageError: ``out`` cannot be written.
    """
    if not len(encoded):
        raise DataError(given=encoded.source, found="no examples to evaluate", instead="rows with an answer")
    total = len(encoded)
    n, nll = np.zeros(total, dtype=np.int32), np.zeros(total, dtype=np.float64)
    held: list[Tokens] = []
    writer = TokenWriter(out) if out is not None else None
    try:
        for part in _parts(model, encoded, packed, max_tokens):
            np.add.at(nll, part.example, part.nll.astype(np.float64))
            np.add.at(n, part.example, 1)
            if writer is not None:
                writer.write(part)
            else:
                held.append(part)
        if writer is not None:
            writer.finish()
    finally:
        if writer is not None:
            writer.abandon()
    scores = Scores(
        example=np.arange(total, dtype=np.int32), n=n, nll=nll, tokens=_joined(held) if out is None else None
    )
    if out is not None:
        scores.write(out)
    return scores


def _parts(model: Any, encoded: Encoded, packed: bool, max_tokens: int) -> Iterator[Tokens]:
    from loratlas.evaluation.token_losses import token_losses

    inner = unwrap(model)
    weight = inner.get_input_embeddings().weight
    limit = max(1, min(max_tokens, MAX_LOGITS // weight.shape[0]))
    for batch in evaluation_batches(encoded, max_tokens=limit, packed=packed):
        # Entered per batch: whoever reads this generator may train in between.
        with evaluating(model):
            losses = token_losses(model, batch.to(weight.device))
        rows = np.asarray(batch.rows, dtype=np.int32)
        places = batch.position_ids.reshape(-1)[batch.where].cpu().numpy()
        yield Tokens(
            example=rows[batch.owners.cpu().numpy()],
            position=(places + 1).astype(np.int32),
            segment=np.full(batch.labelled, SEGMENTS.index("answer"), dtype=np.int8),
            nll=losses.cpu().numpy(),
        )


def _joined(parts: list[Tokens]) -> Tokens:
    columns = {
        name: np.concatenate([getattr(p, name) for p in parts]) for name in Tokens.__dataclass_fields__
    }
    order = np.lexsort((columns["position"], columns["example"]))
    return Tokens(**{name: column[order] for name, column in columns.items()})
