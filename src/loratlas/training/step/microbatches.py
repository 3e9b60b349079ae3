"""How the examples of one step are computed: all at once, or in parts that add up to the same step (law 0)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from loratlas.data.batches.batching import Batch, collate
from loratlas.data.examples import Encoded, Example

CALL_TOKENS = 192
"""What one more pass through the model costs beside its tokens, in tokens: layers launch work whatever its size."""

ROUND = 64
"""Packed batches are filled up to a multiple of so many tokens: few sizes, for every new one costs the matrix library
a few milliseconds and half a megabyte per kind of product, which it keeps."""

FILLER = -1
"""What `Batch.rows` calls the tokens that fill up."""


def microbatches(
    data: Encoded, rows: Sequence[int], *, packed: bool, size: int | None = None
) -> Iterator[Batch]:
    """The batches of one step.

    Packed: end to end in the given order, ``size`` examples at a time, and behind them an example of their own of
    tokens that fill up, seen by none and counted nowhere. Padded: examples of similar length together.

    Args:
        data: all examples.
        rows: which of them make up the step.
        packed: end to end or side by side.
        size: most examples at a time; None for no limit.
    """
    rows = [int(row) for row in rows]
    lengths = [len(data.examples[row]) for row in rows]
    if packed:
        step = size or len(rows)
        parts = [rows[start : start + step] for start in range(0, len(rows), step)]
    else:
        parts = [[rows[index] for index in part] for part in buckets(lengths, most=size)]
    for part in parts:
        examples = [data.examples[row] for row in part]
        missing = -sum(len(example) for example in examples) % ROUND if packed else 0
        if missing:
            ids = np.full(missing, data.pad_id, dtype=np.int32)
            examples.append(Example(input_ids=ids, labelled=np.zeros(missing, dtype=bool), row=FILLER))
            part = [*part, FILLER]
        batch = collate(examples, packed=packed, pad_id=data.pad_id, rows=part)
        yield replace(batch, tokens=batch.tokens - missing)


def buckets(lengths: Sequence[int], *, most: int | None = None, call: int = CALL_TOKENS) -> list[list[int]]:
    """Split examples into padded batches at the least cost.

    Sorted by length, the cheapest split into runs is found exactly:
    c(j) = min over i < j of c(i) + (j − i)·length(j) + call.

    Args:
        lengths: tokens of each example.
        most: examples per batch.
        call: fixed cost of a batch, in tokens.

    Returns:
        Places in ``lengths``, batch by batch.

    >>> buckets([500, 10, 12, 490], call=50)
    [[1, 2], [3, 0]]
    """
    order = np.argsort(np.asarray(lengths), kind="stable")
    longest = np.asarray(lengths, dtype=np.float64)[order]
    n = len(order)
    cost, cut = np.zeros(n + 1), np.zeros(n + 1, dtype=np.int64)
    for j in range(1, n + 1):
        first = 0 if most is None else max(0, j - most)
        i = np.arange(first, j)
        total = cost[i] + (j - i) * longest[j - 1] + call
        best = int(np.argmin(total))
        cost[j], cut[j] = total[best], first + best
    parts: list[list[int]] = []
    end = n
    while end > 0:
        parts.append([int(index) for index in order[cut[end] : end]])
        end = int(cut[end])
    return parts[::-1]
