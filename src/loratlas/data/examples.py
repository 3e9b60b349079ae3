"""What rows become: token ids with a mark on every token that the loss counts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from loratlas.models.task import CAUSAL, CLASSIFICATION, SEQ2SEQ, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row as tokens; what lies end to end in a batch, or side by side.

    Args:
        input_ids: int32 [n].
        labelled: bool [n]; ``labelled[t]`` says that token t is predicted (from the tokens before it) and
            counted. Never at t = 0, for nothing comes before it.
        row: index of the row in its `Rows`, from 0.
        source: of two texts end to end, tokens of the first: a source and its target, or a preferred answer and the
            other one (`loratlas.data.preferences`); None for one text.
        label: the class of the row, where that is what is predicted; then no token is labelled.
        types: int8 [n]; which text of a pair a token belongs to, where the tokenizer says so.
    """

    input_ids: np.ndarray
    labelled: np.ndarray
    row: int
    source: int | None = None
    label: int | None = None
    types: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def counted(self) -> int:
        """What the loss counts of it: its labelled tokens, or its one label."""
        return int(self.labelled.sum()) if self.label is None else 1


def task_of(example: Example) -> str:
    """Name of the task that an example is for."""
    if example.label is not None:
        return CLASSIFICATION
    return CAUSAL if example.source is None else SEQ2SEQ


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeReport:
    """What became of the rows: ``rows = kept + dropped + empty``.

    Args:
        rows: rows given.
        kept: rows that became examples.
        cut: kept rows that lost tokens (from the prompt's left; raw text from its right end).
        dropped: rows whose answer alone is longer than the limit.
        empty: rows without an answer.
        tokens: tokens of the kept rows.
        answer_tokens: tokens that the loss counts; labels, in a classification.
        unstopped: kept rows with an answer behind which no token stops the model.
        respaced: kept rows with an answer whose white space the template changes.
        unnamed: kept rows with a tool's name that the template does not write.
    """

    rows: int
    kept: int
    cut: int
    dropped: int
    empty: int
    tokens: int
    answer_tokens: int
    unstopped: int = 0
    respaced: int = 0
    unnamed: int = 0

    @classmethod
    def of(
        cls,
        examples: Sequence[Example],
        *,
        rows: int | None = None,
        cut: int = 0,
        dropped: int = 0,
        empty: int = 0,
        unstopped: int = 0,
        respaced: int = 0,
        unnamed: int = 0,
    ) -> EncodeReport:
        """Count what was kept.

        Args:
            examples: the kept rows.
            rows: rows given; None for the kept ones.
            cut, dropped, empty, unstopped, respaced, unnamed: of them.
        """
        return cls(
            rows=len(examples) if rows is None else rows,
            kept=len(examples),
            cut=cut,
            dropped=dropped,
            empty=empty,
            tokens=sum(len(example) for example in examples),
            answer_tokens=sum(example.counted for example in examples),
            unstopped=unstopped,
            respaced=respaced,
            unnamed=unnamed,
        )

    def sentence(self) -> str:
        """One line for people.

        >>> EncodeReport(rows=9, kept=7, cut=1, dropped=2, empty=0, tokens=70, answer_tokens=30).sentence()
        '7 of 9 rows, 70 tokens, 30 counted by the loss; 1 cut to the length limit; 2 dropped as too long'
        """
        counts = f"{self.tokens:,} tokens, {self.answer_tokens:,} counted by the loss"
        said = [f"{self.kept:,} of {self.rows:,} rows, {counts}"]
        if self.cut:
            said.append(f"{self.cut:,} cut to the length limit")
        if self.dropped:
            said.append(f"{self.dropped:,} dropped as too long")
        if self.empty:
            said.append(f"{self.empty:,} left out, having no answer")
        if self.unstopped:
            said.append(f"{self.unstopped:,} with an answer that no token stops")
        if self.respaced:
            said.append(f"{self.respaced:,} with an answer whose white space the template changes")
        if self.unnamed:
            said.append(f"{self.unnamed:,} with a tool's name that the template does not write")
        return "; ".join(said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Examples of one source, ready for batches.

    Args:
        examples: in the order of the rows.
        report: what became of the rows.
        digest: first 16 hex digits of the SHA-256 over ids and marks.
        template: the template that was used, in words.
        pad_id: id that fills padded positions; it is never attended to and never counted.
        source: where the rows came from.
        task: what the examples are for.
        tokenizer_size: ids that the tokenizer knows, its added tokens included; 0 where that is unknown.
    """

    examples: tuple[Example, ...]
    report: EncodeReport
    digest: str
    template: str
    pad_id: int
    source: str
    task: Task = field(default_factory=Task)
    tokenizer_size: int = 0

    def __len__(self) -> int:
        return len(self.examples)


def digest_of(examples: Sequence[Example]) -> str:
    """First 16 hex digits of the SHA-256 over ids and marks, sources, labels and types."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(len(example).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(example.input_ids, dtype="<i4").tobytes())
        digest.update(np.packbits(example.labelled).tobytes())
        for number in (example.source, example.label):
            if number is not None:
                digest.update(number.to_bytes(8, "little"))
        if example.types is not None:
            digest.update(np.packbits(example.types.astype(bool)).tobytes())
    return digest.hexdigest()[:16]
