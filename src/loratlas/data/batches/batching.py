"""Examples become batches: laid end to end (packed), or side by side (padded); and their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from loratlas.data.batches.batch import IGNORED, Batch
from loratlas.data.batches.padded_pairs import side_by_side
from loratlas.data.examples import Encoded, Example
from loratlas.errors import SettingsError

ORDER_STREAM = 1
"""Word beside the seed, so that order and initialisation do not share random numbers."""


def collate(
    examples: Sequence[Example], *, packed: bool, pad_id: int = 0, rows: Sequence[int] | None = None
) -> Batch:
    """Lay examples end to end or side by side.

    Args:
        examples: at least one.
        packed: end to end ([1, T]) or side by side ([B, L]).
        pad_id: fills the right of short examples when padded.
        rows: a name for each example; without it their index in ``examples``.

    Returns:
        The batch; targets shifted, nothing counted across examples. Examples with a label, or with a source and a
        target, stand side by side.

    Raises:
        ValueError: no examples, or examples that cannot be packed.
    """
    import torch

    if not examples:
        raise ValueError("a batch needs at least one example")
    if examples[0].label is not None or examples[0].source is not None:
        if packed:
            raise ValueError("examples with a label or a target stand side by side")
        return side_by_side(examples, pad_id=pad_id, rows=rows)
    lengths = tuple(len(example) for example in examples)
    tokens, longest = sum(lengths), max(lengths)
    shape = (1, tokens) if packed else (len(examples), longest)
    ids = np.full(shape, pad_id, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    targets = np.full(shape, IGNORED, dtype=np.int64)
    owner = np.full(shape, -1, dtype=np.int64)
    if not packed:
        positions[:] = np.arange(longest)
    start = 0
    for index, (example, n) in enumerate(zip(examples, lengths, strict=True)):
        line, here = (0, slice(start, start + n)) if packed else (index, slice(0, n))
        start += n
        ids[line, here] = example.input_ids
        positions[line, here] = np.arange(n)
        owner[line, here] = index
        # Position t predicts token t + 1; the last one of an example predicts nothing.
        targets[line, here.start : here.stop - 1] = np.where(
            example.labelled[1:], example.input_ids[1:], IGNORED
        )
    where = np.flatnonzero(targets.reshape(-1) != IGNORED)
    mask = None if packed else torch.from_numpy((owner >= 0).astype(np.int64))
    return Batch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(positions),
        targets=torch.from_numpy(targets),
        example=torch.from_numpy(owner),
        where=torch.from_numpy(where),
        lengths=lengths,
        rows=tuple(rows) if rows is not None else tuple(range(len(examples))),
        packed=packed,
        attention_mask=mask,
        labelled=len(where),
        tokens=tokens,
    )


def training_order(
    n_examples: int, *, steps: int, batch_size: int, seed: int, subset: int | None = None
) -> np.ndarray:
    """Which example stands where in each step.

    The seed draws the subset and then one shuffle per epoch, from NumPy's PCG64 seeded by (seed, 1): the same
    on every machine. An epoch's end may fall inside a step.

    Args:
        n_examples: examples to draw from.
        steps: optimiser steps.
        batch_size: examples per step.
        seed: 0 or larger.
        subset: train on only so many examples, drawn by the seed.

    Returns:
        int64 [steps, batch_size], indices of examples.

    Raises:
        SettingsError: a count below 1, or a subset larger than the data.

    >>> training_order(4, steps=2, batch_size=4, seed=0).shape
    (2, 4)
    """
    for name, value in (("examples", n_examples), ("steps", steps), ("batch size", batch_size)):
        if value < 1:
            raise SettingsError(given=f"{name} = {value}", found="nothing to train on", instead=f"{name} ≥ 1")
    if seed < 0:
        raise SettingsError(given=f"seed {seed}", found="a negative seed", instead="a seed of 0 or more")
    if subset is not None and not 1 <= subset <= n_examples:
        raise SettingsError(
            given=f"a subset of {subset} examples",
            found=f"{n_examples} examples",
            instead=f"1 to {n_examples}",
        )
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, ORDER_STREAM])))
    pool = np.arange(n_examples) if subset is None else np.sort(random.permutation(n_examples)[:subset])
    wanted = steps * batch_size
    epochs = -(-wanted // len(pool))
    order = np.concatenate([random.permutation(pool) for _ in range(epochs)])
    return order[:wanted].reshape(steps, batch_size).astype(np.int64)


def evaluation_batches(encoded: Encoded, *, max_tokens: int, packed: bool) -> Iterator[Batch]:
    """Every example exactly once, longest first, in batches of at most ``max_tokens`` positions (padding
    included).

    Longest first keeps padding small and lets memory run out at the first batch, if at all. An example
    longer than ``max_tokens`` is a batch of its own.

    Args:
        encoded: the examples; ``Batch.rows`` holds their indices in it.
        max_tokens: positions per batch.
        packed: end to end or side by side.
    """
    order = sorted(range(len(encoded)), key=lambda index: (-len(encoded.examples[index]), index))
    lengths = [len(encoded.examples[index]) for index in order]
    for group in length_groups(lengths, max_tokens=max_tokens, packed=packed):
        chosen = [order[index] for index in group]
        yield collate(
            [encoded.examples[index] for index in chosen], packed=packed, pad_id=encoded.pad_id, rows=chosen
        )


def length_groups(lengths: Sequence[int], *, max_tokens: int, packed: bool) -> Iterator[range]:
    """Ranges of indices whose batch stays within a number of tokens, padding included.

    Args:
        lengths: falling from left to right.
        max_tokens: of a batch; a longer row is a batch of its own.
        packed: end to end or side by side.

    >>> list(length_groups([5, 3, 2], max_tokens=8, packed=True))
    [range(0, 2), range(2, 3)]
    """
    start, total = 0, 0
    for index, n in enumerate(lengths):
        cost = total + n if packed else (index + 1 - start) * lengths[start]
        if index > start and cost > max_tokens:
            yield range(start, index)
            start, total = index, 0
        total += n
    if start < len(lengths):
        yield range(start, len(lengths))
