"""Pairs of answers, of which one is preferred, as tokens: what DPO trains on and is judged by.

A row holds ``prompt``, ``chosen`` and ``rejected``, as texts. Both answers are encoded as any answer is (template, end
token), and lie end to end in one example: a pair is one row wherever rows are drawn, held out or counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from loratlas.data.encode import encode
from loratlas.data.examples import Encoded, EncodeReport, Example, digest_of
from loratlas.data.load_rows import load_rows
from loratlas.data.rows import Rows
from loratlas.errors import DataError
from loratlas.models.task import PREFERENCE, Task

FIELDS = ("prompt", "chosen", "rejected")


def preference_rows(
    source: Any,
    *,
    split: str | None = None,
    mapping: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> tuple[Rows, Rows]:
    """Rows with the preferred answer, and the same rows with the other one.

    Args:
        source, split, limit: of :func:`loratlas.data.load_rows.load_rows`.
        mapping: ``prompt``, ``chosen`` or ``rejected`` → column of the source.

    Raises:
        DataError: see `load_rows`; a column that is not there, or a mapping of another field.

    >>> chosen, rejected = preference_rows([{"prompt": "2+2=", "chosen": "4", "rejected": "5"}])
    >>> chosen.rows[0].turns[1].content, rejected.rows[0].turns[1].content
    ('4', '5')
    """
    mapping = mapping or {}
    for name in mapping:
        if name not in FIELDS:
            raise DataError(
                given=f"a column for {name!r} in rows of preferences",
                found="their fields are " + ", ".join(FIELDS),
                instead="prompt, chosen or rejected",
            )
    columns = {name: mapping.get(name, name) for name in FIELDS}
    sides = []
    for side in FIELDS[1:]:
        rows = load_rows(
            source,
            split=split,
            mapping={"prompt": columns["prompt"], "completion": columns[side]},
            limit=limit,
        )
        # The other answer is no key that nothing reads.
        sides.append(replace(rows, remarks=()))
    return sides[0], sides[1]


def encode_pairs(chosen: Rows, rejected: Rows, tokenizer: Any, *, max_length: int) -> Encoded:
    """Tokenise pairs; one that does not fit whole is dropped, for a prompt that is cut differs between its answers.

    Args:
        chosen, rejected: of `preference_rows`.
        tokenizer: of the base.
        max_length: longest prompt with one answer, in tokens.

    Raises:
        DataError: no pair is left, or see :func:`loratlas.data.encode.encode`.
    """
    sides = [encode(rows, tokenizer, max_length=max_length) for rows in (chosen, rejected)]
    by_row = [{example.row: example for example in side.examples} for side in sides]
    examples = []
    for row in sorted(by_row[0].keys() & by_row[1].keys()):
        first, second = by_row[0][row], by_row[1][row]
        if np.array_equal(_prompt(first), _prompt(second)):
            examples.append(
                Example(
                    input_ids=np.concatenate([first.input_ids, second.input_ids]),
                    labelled=np.concatenate([first.labelled, second.labelled]),
                    row=row,
                    source=len(first),
                )
            )
    if not examples:
        raise DataError(
            given=chosen.source,
            found=f"no pair whose prompt and answers fit into {max_length} tokens",
            instead="a larger max_length, or shorter rows",
        )
    total = len(chosen)
    report = EncodeReport.of(examples, rows=total, dropped=total - len(examples))
    return replace(
        sides[0],
        examples=tuple(examples),
        report=report,
        digest=digest_of(examples),
        task=Task(name=PREFERENCE),
    )


def _prompt(example: Example) -> np.ndarray:
    return example.input_ids[: int(example.labelled.argmax())]


def split_pairs(pairs: Encoded) -> tuple[Encoded, Encoded]:
    """The preferred answers and the others, each as rows of their own.

    Args:
        pairs: of `encode_pairs`.
    """
    sides = []
    for first in (True, False):
        examples = tuple(
            Example(
                input_ids=pair.input_ids[: pair.source] if first else pair.input_ids[pair.source :],
                labelled=pair.labelled[: pair.source] if first else pair.labelled[pair.source :],
                row=pair.row,
            )
            for pair in pairs.examples
        )
        report = EncodeReport.of(examples, rows=pairs.report.rows)
        sides.append(
            replace(pairs, examples=examples, report=report, digest=digest_of(examples), task=Task())
        )
    return sides[0], sides[1]


def both_answers(pairs: Encoded) -> Encoded:
    """Every answer of the pairs as a row of a language model: what a step of preferences passes through the base."""
    first, second = split_pairs(pairs)
    examples = (*first.examples, *second.examples)
    return replace(
        first, examples=examples, report=EncodeReport.of(examples), digest=digest_of(examples), task=Task()
    )
