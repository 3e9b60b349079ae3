"""Rows become token ids, with a mark on every token that the loss counts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loratlas.data.chat.carried_text import carries
from loratlas.data.chat.chat_writer import CALLS, THOUGHTS
from loratlas.data.chat_template import chat_beginning, render, template_name
from loratlas.data.rows import Rows, Turn
from loratlas.data.token_marks import tokenise
from loratlas.errors import DataError, ModelError
from loratlas.models.task import CAUSAL, CLASSIFICATION, SEQ2SEQ, Task

CHUNK = 4096
"""Texts tokenised in one call; large enough for the tokenizer's own threads, small enough for the memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row as tokens.

    Args:
        input_ids: int32 [n].
        labelled: bool [n]; ``labelled[t]`` says that token t is predicted (from the tokens before it) and
            counted. Never at t = 0, for nothing comes before it.
        row: place of the row in its `Rows`, from 0.
        source: of a source and its target end to end, tokens of the source; None for one text.
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
    """

    rows: int
    kept: int
    cut: int
    dropped: int
    empty: int
    tokens: int
    answer_tokens: int

    @classmethod
    def of(
        cls,
        examples: Sequence[Example],
        *,
        rows: int | None = None,
        cut: int = 0,
        dropped: int = 0,
        empty: int = 0,
    ) -> EncodeReport:
        """Count what was kept.

        Args:
            examples: the kept rows.
            rows: rows given; None for the kept ones.
            cut, dropped, empty: of them.
        """
        return cls(
            rows=len(examples) if rows is None else rows,
            kept=len(examples),
            cut=cut,
            dropped=dropped,
            empty=empty,
            tokens=sum(len(example) for example in examples),
            answer_tokens=sum(example.counted for example in examples),
        )

    def sentence(self) -> str:
        """One line for people.

        >>> EncodeReport(rows=9, kept=7, cut=1, dropped=2, empty=0, tokens=70, answer_tokens=30).sentence()
        '7 of 9 rows, 70 tokens, 30 counted by the loss; 1 cut to the length limit; 2 dropped as too long'
        """
        counts = f"{self.tokens:,} tokens, {self.answer_tokens:,} counted by the loss"
        parts = [f"{self.kept:,} of {self.rows:,} rows, {counts}"]
        if self.cut:
            parts.append(f"{self.cut:,} cut to the length limit")
        if self.dropped:
            parts.append(f"{self.dropped:,} dropped as too long")
        if self.empty:
            parts.append(f"{self.empty:,} left out, having no answer")
        return "; ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Examples of one source, ready for batches.

    Args:
        examples: in the order of the rows.
        report: what became of the rows.
        digest: first 16 hex digits of the SHA-256 over ids and marks.
        template: the template that was used, in words.
        pad_id: id to fill padded places with; it is never attended to and never counted.
        source: where the rows came from.
        task: what the examples are for.
    """

    examples: tuple[Example, ...]
    report: EncodeReport
    digest: str
    template: str
    pad_id: int
    source: str
    task: Task = field(default_factory=Task)

    def __len__(self) -> int:
        return len(self.examples)


def load_tokenizer(source: str | Path) -> Any:
    """The tokenizer of a local directory or a Hub id. One without a pad token is fine: none is added.

    Raises:
        ModelError: there is none, or it cannot be reached.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    except Exception as error:  # transformers raises a dozen kinds here
        words = " ".join(str(error).split())[:300]
        raise ModelError(
            given=str(source),
            found=f"no tokenizer could be read there ({words})",
            instead="a directory with tokenizer.json or a Hub id of a model with a tokenizer",
        ) from error


def pad_id(tokenizer: Any) -> int:
    """The id for padded places: pad, else eos, else sep, else 0. They are masked and never counted."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id):
        if token is not None:
            return int(token)
    return 0


def opening_ids(tokenizer: Any) -> list[int]:
    """The special tokens that this tokenizer puts before a text (a begin token or none)."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    opening = []
    for token, special in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
        if not special:
            break
        opening.append(token)
    return opening


def begin_ids(tokenizer: Any) -> list[int]:
    """The tokens with which the chat template begins every conversation: special ones that it does not write again."""
    written = chat_beginning(tokenizer)
    if written is None:
        return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids)
    n = next((n for n, token in enumerate(ids) if token not in special or ids.count(token) > 1), len(ids))
    return ids[:n]


def _says(turn: Turn) -> bool:
    """Whether a turn has something that the loss counts."""
    if turn.role not in ("assistant", "text") or not turn.counted:
        return False
    return bool(turn.content.strip()) or carries(turn, *CALLS, *THOUGHTS)


def encode(rows: Rows, tokenizer: Any, *, max_length: int, loss: str = "answer") -> Encoded:
    """Tokenise rows.

    A row longer than ``max_length`` loses tokens from the left of its prompt; a begin token stays. In a
    conversation, whole early exchanges go when its first prompt is not enough. The row is dropped when its
    last answer does not fit with one token before it. Raw text (form ``text``) has no prompt and keeps its
    first ``max_length`` tokens. All of it is counted.

    Args:
        rows: what `load_rows` returned.
        tokenizer: a tokenizer of transformers.
        max_length: longest example, in tokens, at least 2.
        loss: ``answer``: only answers are counted, each with the token that ends it. ``all``: every token
            but the first.

    Raises:
        DataError: all rows too long, no answer token anywhere, or a template that does not fit.
    """
    if max_length < 2:
        raise DataError(
            given=f"--max-length {max_length}", found="no token left to predict", instead="2 or more"
        )
    if loss not in ("answer", "all"):
        raise DataError(given=f"--loss {loss}", found="an unknown loss", instead="answer or all")
    plain = not tokenizer.chat_template or rows.form == "text"
    opening = opening_ids(tokenizer) if plain else []
    begin = opening if plain else begin_ids(tokenizer)  # a chat template writes its own
    examples: list[Example] = []
    cut = dropped = empty = 0
    for index, (ids, labelled) in enumerate(_tokens(rows, tokenizer, opening)):
        answered = any(_says(turn) for turn in rows.rows[index].turns)
        if loss == "answer" and not (answered and labelled[1:].any()):
            empty += 1
            continue
        if len(ids) > max_length:
            first = len(begin) if ids[: len(begin)].tolist() == begin else 0
            kept = _shortened(labelled, max_length, first, keeps_head=rows.form == "text")
            if kept is None:
                dropped += 1
                continue
            ids, labelled = ids[kept], labelled[kept]
            cut += 1
        counted = np.ones(len(ids), dtype=bool) if loss == "all" else labelled
        counted[0] = False
        if not counted.any():
            empty += 1
            continue
        examples.append(Example(input_ids=ids, labelled=counted, row=index))
    report = EncodeReport.of(examples, rows=len(rows), cut=cut, dropped=dropped, empty=empty)
    if not examples:
        raise _nothing_left(rows, report, max_length)
    return Encoded(
        examples=tuple(examples),
        report=report,
        digest=digest_of(examples),
        template=template_name(tokenizer, rows.form),
        pad_id=pad_id(tokenizer),
        source=rows.source,
    )


def _tokens(rows: Rows, tokenizer: Any, opening: Sequence[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids and answer marks of each row. A chunk of rows is tokenised in one call."""
    begin = np.asarray(opening, dtype=np.int32)
    for start in range(0, len(rows), CHUNK):
        part = rows.rows[start : start + CHUNK]
        for ids, marks in tokenise([render(row, tokenizer) for row in part], tokenizer):
            if len(begin):
                ids, marks = np.concatenate([begin, ids]), np.concatenate([begin != begin, marks])
            yield ids, marks


def _shortened(labelled: np.ndarray, limit: int, opening: int, *, keeps_head: bool) -> np.ndarray | None:
    """Indices of the tokens that stay, or None when the last answer does not fit.

    The cut may fall anywhere in a prompt, and never inside an answer: half an answer is another answer.
    """
    n = len(labelled)
    if keeps_head:
        return np.arange(limit)
    starts = np.flatnonzero(labelled & ~np.concatenate([[False], labelled[:-1]]))
    if not len(starts):  # only under loss "all": no answer to protect
        first = n - (limit - opening)
    else:
        context = 0 if opening else 1  # one token before the last answer, to predict its first token from
        first = n - (limit - opening)
        if first > starts[-1] - context:
            return None
        while labelled[first] and first not in starts:  # inside an answer: go on to the end of it
            first += 1
        if labelled[first] and context:
            first = first + int(np.argmin(labelled[first:]))
    return np.concatenate([np.arange(opening), np.arange(first, n)])


def check_positions(encoded: Encoded, config: Any) -> None:
    """Refuse examples that reach beyond the positions that a model was made for.

    Args:
        encoded: the rows.
        config: of the model; one that names no number of positions (ALiBi, say) has no limit.

    Raises:
        DataError: an example is longer.
    """
    limit = _positions(config.get_text_config())
    longest = max((max(_sides(example)) for example in encoded.examples), default=0)
    if isinstance(limit, int) and 0 < limit < longest:
        raise DataError(
            given=f"{encoded.source}, with examples of up to {longest:,} tokens",
            found=f"a model of {limit:,} positions",
            instead=f"a largest length (--max-length, max_length) of at most {limit}",
        )


_BEHIND_PADDING = ("roberta", "camembert", "xmod", "data2vec-text", "mpnet", "longformer")
"""Types, or parts of their names, whose positions begin behind the id of the pad token."""


def _positions(config: Any) -> Any:
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and any(name in config.model_type for name in _BEHIND_PADDING):
        return limit - (config.pad_token_id or 0) - 1
    return limit


def _sides(example: Example) -> tuple[int, ...]:
    """Tokens that share positions: all of them, or the source's and the target's."""
    return (len(example),) if example.source is None else (example.source, len(example) - example.source)


def digest_of(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(len(example).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(example.input_ids, dtype="<i4").tobytes())
        digest.update(np.packbits(example.labelled).tobytes())
        for place in (example.source, example.label):
            if place is not None:
                digest.update(place.to_bytes(8, "little"))
        if example.types is not None:
            digest.update(np.packbits(example.types.astype(bool)).tobytes())
    return digest.hexdigest()[:16]


def _nothing_left(rows: Rows, report: EncodeReport, max_length: int) -> DataError:
    if report.dropped:
        return DataError(
            given=f"{rows.source} with --max-length {max_length}",
            found=f"all rows too long: {report.dropped} of {report.rows} have an answer that does not fit",
            instead="a larger --max-length",
        )
    return DataError(
        given=rows.source,
        found=f"zero answer tokens: none of the {report.rows} rows has an answer",
        instead="rows with answers, or --loss all",
    )
