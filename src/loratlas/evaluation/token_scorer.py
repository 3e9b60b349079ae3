"""The one pass that scores tokens: examples in, the per-token table out, in memory or streamed to a folder.

Training's evaluation, studies, `eval` and the audit of logs all score through `run_pass`; they differ in its arguments
alone. The plain case (counted tokens, each example alone and whole) is laid out by
`loratlas.data.batches.batching.collate`, everything else by `loratlas.evaluation.token_layout`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from loratlas.data.batches.batching import Batch, collate, length_groups
from loratlas.data.examples import Example
from loratlas.errors import DataError
from loratlas.evaluation.forward_condition import Condition, drawing, under
from loratlas.evaluation.loss_files import EXAMPLES
from loratlas.evaluation.result_folder import ResultFolder
from loratlas.evaluation.token_layout import InputRow, batch_of, input_rows, pad_rows, segments_of
from loratlas.evaluation.tokens import Tokens, concatenate
from loratlas.modeling import unwrap

MAX_TOKENS = 2048
"""Tokens of one forward pass, padding included."""

MAX_LOGITS = 2**26
"""Numbers in one matrix of logits: wide vocabularies get smaller batches."""

CHUNK = 1024
"""Rows that are sorted by length and written together: what bounds the memory."""

SAMPLE = 4096
"""Numbers of each weight that distinguish one model from another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringPass:
    """What is scored, and how the model is run.

    Args:
        packed: end to end (only where `loratlas.data.batches.packing_proof.prove_packing` says exact) or side by side;
            a condition with padding lays rows side by side in any case.
        condition: how the model is run; the default: each example alone and whole.
        everything: score prompts, special tokens and padding as well.
        special: ids that the table calls special (``tokenizer.all_special_ids``).
        uniform: measure ū, for label smoothing.
        bounds: measure the error bound.
        pad_id: pads rows side by side.
        max_tokens: tokens per forward pass, padding included.
    """

    packed: bool
    condition: Condition = field(default_factory=Condition)
    everything: bool = False
    special: tuple[int, ...] = ()
    uniform: bool = False
    bounds: bool = False
    pad_id: int = 0
    max_tokens: int = MAX_TOKENS

    def to_json(self) -> dict[str, Any]:
        """Plain data, which identifies the pass."""
        columns = [self.everything, self.uniform, self.bounds, list(self.special)]
        layout = [self.packed, self.pad_id, self.max_tokens]
        return {"condition": self.condition.to_json(), "columns": columns, "layout": layout}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    """Rows that are scored and written together; batches are made when they are asked for."""

    rows: int
    batches: int
    digest: Callable[[int], int]
    make: Callable[[], Iterator[tuple[Batch, Tokens, int]]]


def run_pass(
    model: Any,
    examples: Iterable[Example],
    what: ScoringPass,
    take: Callable[[Tokens], None],
    *,
    folder: ResultFolder | None = None,
    chunk: int | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> list[int]:
    """Score examples; the model is put under the condition once, and put back at the end.

    Args:
        model: bare or as a `PeftModel`; left as it was.
        examples: in the order that gives them their names 0, 1, …; they may be made on the way.
        what: what is scored and how.
        take: gets the tokens of one chunk after the other, sorted by example and position.
        folder: row groups are written there, and those that lie there already are read instead of scored.
        chunk: rows per row group; None: all examples at once.
        on_rows: called after every forward pass with the number of rows (examples, or windows of them) done.

    Returns:
        A digest for every chunk, over its examples; empty without a folder.

    Raises:
        SettingsError: see `loratlas.evaluation.forward_condition.under`.
        StorageError: the folder cannot be written.
    """
    inner = unwrap(model)
    weight = inner.get_input_embeddings().weight
    limit = max(1, min(what.max_tokens, MAX_LOGITS // weight.shape[0]))
    report = on_rows or (lambda rows: None)
    marks: list[int] = []
    before = seen = 0

    def score(chunk: _Chunk) -> Tokens:
        done, tables = seen, []
        for index, (batch, names, rows) in enumerate(chunk.make(), before):
            tables.append(_score_batch(model, batch, names, what, index, weight.device))
            done += rows
            report(done)
        return concatenate(tables).sorted()

    with under(model, what.condition):
        for index, each in enumerate(_chunks(examples, what, limit, chunk)):
            mark = each.digest(0) if folder is not None else 0
            if folder is not None and folder.has(index, mark):
                take(folder.read(index))
                report(seen + each.rows)
            else:
                tokens = score(each)
                if folder is not None:
                    folder.write(index, mark, tokens)
                take(tokens)
            if folder is not None:
                marks.append(mark)
            before, seen = before + each.batches, seen + each.rows
    return marks


def _score_batch(
    model: Any, batch: Batch, names: Tokens, what: ScoringPass, index: int, device: Any
) -> Tokens:
    from loratlas.evaluation.token_statistics import token_statistics

    with drawing(what.condition, index, device):
        statistics = token_statistics(model, batch.to(device), uniform=what.uniform, bounds=what.bounds)
    values = {name: getattr(statistics, name) for name in ("nll", "uniform", "error")}
    return replace(names, **{name: None if v is None else v.cpu().numpy() for name, v in values.items()})


def _chunks(examples: Iterable[Example], what: ScoringPass, limit: int, size: int | None) -> Iterator[_Chunk]:
    if what.everything or what.condition.changes_layout:
        yield from _conditioned(examples, what, limit, size)
        return
    source, first = iter(examples), 0
    while held := list(islice(source, size)):
        # What counts nothing is not run.
        order = sorted((i for i, e in enumerate(held) if e.counted), key=lambda i: (-len(held[i]), i))
        lengths = [len(held[i]) for i in order]
        groups = [
            [order[k] for k in group]
            for group in length_groups(lengths, max_tokens=limit, packed=what.packed)
        ]
        yield _Chunk(
            rows=len(held),
            batches=len(groups),
            digest=partial(_digest, held),
            make=partial(_plain_batches, held, groups, first, what),
        )
        first += len(held)


def _digest(held: Sequence[Example], before: int) -> int:
    for example in held:
        before = zlib.crc32(np.ascontiguousarray(example.input_ids).tobytes(), before)
        before = zlib.crc32(np.ascontiguousarray(example.labelled).tobytes(), before)
        before = zlib.crc32(f"{example.source} {len(example)}".encode(), before)
    return before


def _plain_batches(
    held: Sequence[Example], groups: Sequence[Sequence[int]], first: int, what: ScoringPass
) -> Iterator[tuple[Batch, Tokens, int]]:
    special = np.asarray(what.special, dtype=np.int64)
    for group in groups:
        chosen = [held[index] for index in group]
        batch = collate(chosen, packed=what.packed, pad_id=what.pad_id, rows=[first + i for i in group])
        rows = np.asarray(batch.rows, dtype=np.int32)
        position = batch.position_ids.reshape(-1)[batch.where].numpy() + 1
        ids = batch.answers.numpy()
        counted = np.ones(len(ids), dtype=bool)
        names = Tokens(
            example=rows[batch.owners.numpy()],
            position=position.astype(np.int32),
            segment=segments_of(ids, counted, special),
            counted=counted,
            nll=np.zeros(0, dtype=np.float32),
        )
        yield batch, names, len(group)


def _conditioned(
    examples: Iterable[Example], what: ScoringPass, limit: int, size: int | None
) -> Iterator[_Chunk]:
    condition = what.condition
    source = input_rows(examples, condition, everything=what.everything, special=what.special)
    if size is not None and condition.batch_size is not None:
        size = -(-size // condition.batch_size) * condition.batch_size  # whole batches
    while held := list(islice(source, size)):
        groups = _groups(held, what, limit)
        yield _Chunk(
            rows=len(held),
            batches=len(groups),
            digest=partial(_digest_rows, held),
            make=partial(_conditioned_batches, groups, what),
        )


def _digest_rows(held: Sequence[InputRow], before: int) -> int:
    for row in held:
        before = row.digest(before)
    return before


def _groups(held: Sequence[InputRow], what: ScoringPass, limit: int) -> list[list[InputRow]]:
    """Rows of a chunk as batches: by length, or as the condition lays them."""
    condition = what.condition
    if condition.padding is not None:
        size = condition.batch_size or 1
        cut = [list(held[start : start + size]) for start in range(0, len(held), size)]
        options = {"everything": what.everything, "ahead": condition.ahead}
        return [pad_rows(group, condition.padding, what.pad_id, **options) for group in cut]
    rows = sorted((row for row in held if row.scored.any()), key=lambda row: -len(row))
    groups = length_groups([len(row) for row in rows], max_tokens=limit, packed=what.packed)
    return [[rows[k] for k in group] for group in groups]


def _conditioned_batches(
    groups: Sequence[Sequence[InputRow]], what: ScoringPass
) -> Iterator[tuple[Batch, Tokens, int]]:
    packed = what.packed and what.condition.padding is None
    for group in groups:
        batch, scored = batch_of(group, packed=packed, pad_id=what.pad_id, ahead=what.condition.ahead)
        if not batch.labelled:
            continue
        columns = {name: getattr(scored, name) for name in ("example", "position", "segment", "counted")}
        yield batch, Tokens(**columns, nll=np.zeros(0, dtype=np.float32)), len(group)


def measure(
    model: Any,
    examples: Iterable[Example],
    *,
    packed: bool,
    out: Path,
    condition: Condition | None = None,
    everything: bool = False,
    special: Iterable[int] = (),
    uniform: bool = False,
    bounds: bool = True,
    pad_id: int = 0,
    max_tokens: int = MAX_TOKENS,
    chunk: int = CHUNK,
    on_rows: Callable[[int], None] | None = None,
) -> Path:
    """Score tokens into a folder: ``tokens.parquet`` and ``examples.parquet`` (see `ResultFolder`).

    Examples are read ``chunk`` at a time, laid out longest first, scored, and written as one row group, so that memory
    depends on neither their number nor that of their tokens. A pass that was killed goes on after its last whole row
    group when the same call is made again, and is read where it was finished; with other weights, another condition or
    other examples unfinished work begins anew.

    Args:
        model: bare or as a `PeftModel`; left as it was.
        examples: in the order that gives them their names 0, 1, …; they may be made on the way.
        out: the folder.
        packed, condition, everything, special, uniform, bounds, pad_id, max_tokens: see `ScoringPass`.
        chunk: rows per row group.
        on_rows: see `run_pass`.

    Returns:
        ``out``, for `loratlas.evaluation.loss_files.read_tokens`.

    Raises:
        DataError: no examples, or none with a token to score.
        OutputError: ``out`` holds something else.
        SettingsError, StorageError: see `run_pass`.
    """
    what = ScoringPass(
        packed=packed,
        condition=condition or Condition(),
        everything=everything,
        special=tuple(sorted(set(special))),
        uniform=uniform,
        bounds=bounds,
        pad_id=pad_id,
        max_tokens=max_tokens,
    )
    identity = {**what.to_json(), "chunk": chunk, "weights": weights_digest(model)}
    folder = ResultFolder(out, identity)
    n, nll, scored = np.zeros(0, dtype=np.int64), np.zeros(0), 0

    def add(tokens: Tokens) -> None:
        nonlocal n, nll, scored
        total = max(len(n), int(tokens.example.max(initial=-1)) + 1)
        more_n, more_nll = tokens.sums(total)
        n = more_n + np.pad(n, (0, total - len(n)))
        nll = more_nll + np.pad(nll, (0, total - len(nll)))
        scored += len(tokens)

    marks = run_pass(model, examples, what, add, folder=folder, chunk=chunk, on_rows=on_rows)
    if not scored:
        raise DataError(
            given="examples to score",
            found="no answer tokens" if marks else "no examples to evaluate",
            instead="rows with an answer",
        )
    folder.finish({EXAMPLES: example_columns(n, nll)}, marks=marks)
    return out


def example_columns(n: np.ndarray, nll: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of ``examples.parquet``: example, counted tokens, summed nll."""
    return {"example": np.arange(len(n), dtype=np.int32), "n": n.astype(np.int32), "nll": nll}


def weights_digest(model: Any) -> str:
    """CRC-32 over names, shapes and up to 2 × `SAMPLE` numbers of every weight: enough to distinguish runs.

    The numbers are the first ones and others spread over the whole weight.
    """
    import torch

    total = 0
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        spread = flat[:: max(1, len(flat) // SAMPLE)][:SAMPLE]
        total = zlib.crc32(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode(), total)
        for part in (flat[:SAMPLE], spread):
            numbers = part.contiguous().cpu().view(torch.uint8).numpy()
            total = zlib.crc32(numbers.tobytes(), total)
    return f"{total:08x}"
