"""Training rows, held-out rows to tune on, and rows to judge on: drawn once for all arms and seeds of a study."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from loratlas.errors import DataError

if TYPE_CHECKING:
    from loratlas.data.examples import Encoded
    from loratlas.study.spec.study_spec import StudySpec


def hold_out(
    whole: Encoded, rows: int, stream: np.random.SeedSequence, spec: StudySpec
) -> tuple[Encoded, Encoded]:
    """Training rows and held-out tuning rows; the same for every arm and seed."""
    if len(whole) < 2 * rows:
        raise DataError(
            given=f"{spec.data.train} with tuning.rows: {rows}",
            found=f"{len(whole)} rows in all, so that more would be held out than trained on",
            instead=f"at least {2 * rows} training rows"
            + (f", or tuning.rows of at most {len(whole) // 2}" if spec.demonstration else ""),
        )
    order = _draw(len(whole), stream)
    return subset(whole, np.sort(order[rows:])), subset(whole, np.sort(order[:rows]))


def draw_rows(whole: Encoded, rows: int, stream: np.random.SeedSequence) -> Encoded:
    """So many rows, drawn where there are more, in their order."""
    return whole if len(whole) <= rows else subset(whole, np.sort(_draw(len(whole), stream)[:rows]))


def _draw(count: int, stream: np.random.SeedSequence) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(stream)).permutation(count)


def subset(encoded: Encoded, indices: Sequence[int] | np.ndarray) -> Encoded:
    """The encoded rows at these places, with their own counts and digest."""
    examples = tuple(encoded.examples[int(index)] for index in indices)
    hashed = hashlib.sha256(encoded.digest.encode())
    hashed.update(np.asarray(indices, dtype="<i8").tobytes())
    return replace(
        encoded,
        examples=examples,
        report=replace(
            encoded.report,
            kept=len(examples),
            tokens=sum(len(example) for example in examples),
            answer_tokens=sum(example.counted for example in examples),
        ),
        digest=hashed.hexdigest()[:16],
    )
