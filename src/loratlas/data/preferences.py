"""Pairs of answers, of which one is preferred, as tokens: what DPO trains on and is judged by.

A row holds ``prompt``, ``chosen`` and ``rejected``: texts, or conversations. Conversations may hold the prompt
themselves, as TRL's implicit prompts do; it is what both of them begin with. Both answers are encoded as any answer
is (template, end token), and lie end to end in one example: a pair is one row wherever rows are drawn, held out or
counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loratlas.data.encode import encode
from loratlas.data.examples import Encoded, EncodeReport, Example, digest_of
from loratlas.data.load_rows import first_record, load_rows
from loratlas.data.rows import Row, Rows, Turn
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
        DataError: see `load_rows`; a column that is not there, or a mapping of another field; conversations that do not
            differ in their last answer alone.

    >>> chosen, rejected = preference_rows([{"prompt": "2+2=", "chosen": "4", "rejected": "5"}])
    >>> chosen.rows[0].turns[1].content, rejected.rows[0].turns[1].content
    ('4', '5')
    >>> asked = {"role": "user", "content": "2+2="}
    >>> said = [[asked, {"role": "assistant", "content": text}] for text in "45"]
    >>> chosen, rejected = preference_rows([{"chosen": said[0], "rejected": said[1]}])
    >>> [turn.content for turn in rejected.rows[0].turns]
    ['2+2=', '5']
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
    inside = _prompt_inside(first_record(source, split=split), columns)
    sides = []
    for side in FIELDS[1:]:
        fields = (
            {"messages": columns[side]}
            if inside
            else {"prompt": columns["prompt"], "completion": columns[side]}
        )
        # The other answer is no key that nothing reads.
        sides.append(replace(load_rows(source, split=split, mapping=fields, limit=limit), remarks=()))
    chosen, rejected = (
        replace(rows, rows=_Answers(own=rows.rows, other=other.rows, source=rows.source))
        for rows, other in (sides, sides[::-1])
    )
    return chosen, rejected


def _prompt_inside(record: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    """Whether answers are conversations that begin with the prompt: TRL's rule, where no prompt of messages is."""
    answer, prompt = record.get(columns["chosen"]), record.get(columns["prompt"])
    if not isinstance(answer, list) or isinstance(prompt, list):
        return False
    first = answer[0] if answer and isinstance(answer[0], Mapping) else {}
    return prompt is None or first.get("role", first.get("from")) not in ("assistant", "gpt")


@dataclass(frozen=True, slots=True)
class _Answers(Sequence[Row]):
    """One side's rows, made when they are asked for: of what both sides begin with no turn is counted.

    Args:
        own: whole conversations of this side. other: of the other side, row by row.
        source: what the user wrote, for errors.
    """

    own: Sequence[Row]
    other: Sequence[Row]
    source: str

    def __len__(self) -> int:
        return len(self.own)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        row = self.own[index]
        turns, others = row.turns, self.other[index].turns
        shared = 0
        while shared < min(len(turns), len(others)) - 1 and turns[shared] == others[shared]:
            shared += 1
        self._check(turns[shared:], others[shared:], turns[:shared], row.source_row)
        asked = [
            replace(turn, counted=False) if turn.role == "assistant" else turn for turn in turns[:shared]
        ]
        return replace(row, turns=(*asked, turns[shared]))

    def _check(self, own: Sequence[Turn], other: Sequence[Turn], prompt: Sequence[Turn], number: int) -> None:
        for answer in (own, other):
            if len(answer) != 1 or answer[0].role != "assistant":
                roles = ", ".join(turn.role for turn in answer[:6])
                raise DataError(
                    given=self.source,
                    found=f"chosen and rejected that differ before their last turn (then {roles}) on row {number + 1}",
                    instead="conversations that are the same up to one answer each, which is the last turn",
                )
        users = [turn.content for turn in prompt if turn.role == "user"]
        if len(users) > 1 and users[-1] == users[-2] and prompt[-2].role == "user":
            raise DataError(
                given=self.source,
                found=f"a prompt that chosen and rejected hold once more on row {number + 1}",
                instead="chosen and rejected with the answer alone, or rows without prompt",
            )


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
