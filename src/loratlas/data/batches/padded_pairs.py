"""Batches of examples that are not one text: a text with a label, or a source with a target."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loratlas.data.batches.batch import IGNORED, Batch
from loratlas.data.examples import Example
from loratlas.models.task import CLASSIFICATION, SEQ2SEQ


def side_by_side(examples: Sequence[Example], *, pad_id: int, rows: Sequence[int] | None) -> Batch:
    """Lay examples side by side, filled right; arguments are those of `loratlas.data.batches.batching.collate`."""
    import torch

    pairs = examples[0].source is not None
    sources = [example.input_ids[: example.source] for example in examples]
    ids, there = _filled(sources, pad_id)
    types = None
    if any(example.types is not None for example in examples):
        none = np.zeros(0, dtype=np.int8)
        types, _ = _filled([none if e.types is None else e.types for e in examples], 0, width=ids.shape[1])
    if pairs:
        targets, answered = _filled([e.input_ids[e.source :] for e in examples], IGNORED)
    else:
        targets = np.array([[example.label] for example in examples], dtype=np.int64)
        answered = np.ones_like(targets, dtype=bool)
    owner = np.where(answered, np.arange(len(examples))[:, None], -1)
    # Place in the example of what comes before a target's token, as `Batch.position_ids` has it of one text.
    before = np.array([[len(source) - 1] for source in sources]) + np.arange(targets.shape[1])
    where = np.flatnonzero(answered.reshape(-1))
    return Batch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(before),
        targets=torch.from_numpy(targets),
        example=torch.from_numpy(owner),
        where=torch.from_numpy(where),
        lengths=tuple(len(example) for example in examples),
        rows=tuple(rows) if rows is not None else tuple(range(len(examples))),
        packed=False,
        attention_mask=torch.from_numpy(there.astype(np.int64)),
        labelled=len(where),
        tokens=sum(len(example) for example in examples),
        task=SEQ2SEQ if pairs else CLASSIFICATION,
        token_type_ids=None if types is None else torch.from_numpy(types),
    )


def _filled(
    arrays: Sequence[np.ndarray], fill: int, *, width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """int64 [B, L], and bool [B, L] where something stands."""
    lengths = np.array([len(array) for array in arrays])
    there = np.arange(width or lengths.max()) < lengths[:, None]
    whole = np.full(there.shape, fill, dtype=np.int64)
    whole[there] = np.concatenate(arrays)
    return whole, there
