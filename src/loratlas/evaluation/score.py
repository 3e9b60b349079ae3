"""The loss of every example, from one pass over the rows; all else is computed from it without the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loratlas.data.examples import Encoded
from loratlas.errors import DataError
from loratlas.evaluation.loss_files import (
    EXAMPLES,
    TOKENS,
    arrow_table,
    read_columns,
    read_tokens,
    write_digests,
    write_table,
)
from loratlas.evaluation.result_folder import ResultFolder
from loratlas.evaluation.token_scorer import (
    CHUNK,
    MAX_TOKENS,
    ScoringPass,
    example_columns,
    run_pass,
    weights_digest,
)
from loratlas.evaluation.tokens import Tokens, concatenate
from loratlas.files import draft


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Losses of every example.

    Args:
        example: int32 [N]; 0 to N − 1, the order of the encoded examples.
        n: int32 [N]; counted tokens.
        nll: float64 [N]; summed over the counted tokens, nats.
        tokens: the counted tokens, unless they were streamed to a file.
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

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """Columns of ``examples.parquet``."""
        return {"example": self.example, "n": self.n, "nll": self.nll}

    def write(self, folder: Path, **more: dict[str, np.ndarray]) -> None:
        """Write ``examples.parquet``, the table of tokens if it is held, and ``digests.json``; each whole or not.

        Args:
            folder: where tables of an earlier evaluation are replaced.
            more: further tables by name, without ``.parquet``.

        Raises:
            StorageError, OutputError: the disk is full or not writable.
        """
        from pyarrow import parquet

        tables = {EXAMPLES: self.columns} | {f"{name}.parquet": columns for name, columns in more.items()}
        for name, columns in tables.items():
            write_table(folder / name, columns)
        names = tuple(tables)
        if self.tokens is not None:
            with draft(folder / TOKENS) as unfinished:
                parquet.write_table(arrow_table(self.tokens), unfinished, compression="zstd")
            names += (TOKENS,)
        write_digests(folder, names)


def read_scores(folder: Path) -> Scores:
    """What `Scores.write`, `score(out=…)` or `loratlas eval --out` left in a folder, with its counted tokens.

    Raises:
        DataError: no ``examples.parquet`` there, or a table that is damaged or lacks a column.
    """
    examples = read_columns(folder, EXAMPLES, ("example", "n", "nll"))
    tokens = read_tokens(folder, counted_only=True) if (folder / TOKENS).exists() else None
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

    Examples are taken longest first, in batches of at most ``max_tokens`` tokens; the result depends neither on that
    number nor on packing (law 6). Logits are formed for the counted positions of one batch at a time.

    Args:
        model: bare or as a `PeftModel`; put back into the mode it was in.
        encoded: the rows.
        packed: end to end (only where `loratlas.data.batches.packing_proof.prove_packing` says exact) or side by side.
        max_tokens: tokens per forward pass, padding included.
        out: stream the table of tokens to this folder (see `loratlas.evaluation.result_folder`); then memory does not
            grow with the number of tokens, ``Scores.tokens`` is None, and a killed call goes on when it is repeated.

    Returns:
        The scores, in the order of ``encoded``.

    Raises:
        DataError: no examples.
        OutputError, StorageError: ``out`` cannot be used or written.
    """
    if not len(encoded):
        raise DataError(given=encoded.source, found="no examples to evaluate", instead="rows with an answer")
    total = len(encoded)
    n, nll = np.zeros(total, dtype=np.int64), np.zeros(total, dtype=np.float64)
    held: list[Tokens] = []
    what = ScoringPass(packed=packed, pad_id=encoded.pad_id, max_tokens=max_tokens)
    folder = None
    if out is not None:
        identity = {**what.to_json(), "weights": weights_digest(model), "rows": encoded.digest}
        folder = ResultFolder(out, identity)

    def take(tokens: Tokens) -> None:
        for sums, more in zip((n, nll), tokens.sums(total), strict=True):
            sums += more
        if out is None:
            held.append(tokens)

    chunk = None if out is None else CHUNK
    marks = run_pass(model, encoded.examples, what, take, folder=folder, chunk=chunk)
    columns = example_columns(n, nll)
    if folder is not None:
        folder.finish({EXAMPLES: columns}, marks=marks)
    return Scores(**columns, tokens=concatenate(held) if out is None else None)
