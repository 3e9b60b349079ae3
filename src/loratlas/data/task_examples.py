"""Rows become examples of the task that they are for.

A classification reads the text (or the pair of texts) as the tokenizer writes it for that, special tokens included. A
source and its target are tokenised each by itself, as the tokenizer writes either, and stand end to end in an example.
A target ends with the end token, whether the tokenizer writes it or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loratlas.data.chat.chat_template import check_contents_only
from loratlas.data.encode import CHUNK, encode, pad_id
from loratlas.data.examples import Encoded, EncodeReport, Example, digest_of
from loratlas.data.model_limits import fitted
from loratlas.data.rows import Row, Rows
from loratlas.errors import DataError
from loratlas.models.config import load_config
from loratlas.models.labels import label_index
from loratlas.models.task import CLASSIFICATION, SEQ2SEQ, Task


def label_set(rows: Rows) -> tuple[str, ...]:
    """Names of the classes that rows have: numbers in their order, words in that of the alphabet.

    Raises:
        DataError: no labels, or a single one.
    """
    labels = {row.label for row in rows.rows if row.label is not None}
    if len(labels) < 2:
        raise DataError(
            given=rows.source,
            found=f"the same label, {next(iter(labels))!r}, on all {len(rows):,} rows"
            if labels
            else "no labels",
            instead="rows of two classes or more",
        )
    numbers = [label for label in labels if isinstance(label, int)]
    words = [label for label in labels if isinstance(label, str)]
    return tuple(str(label) for label in (*sorted(numbers), *sorted(words)))


def encode_for(
    task: Task, rows: Rows, tokenizer: Any, *, config: Any, max_length: int, loss: str = "answer"
) -> Encoded:
    """Tokenise rows for a task.

    Args:
        task: see `loratlas.models.task.recognise`.
        rows: what `load_rows` returned.
        tokenizer: of the model.
        max_length: longest text in tokens; of a source and its target, longest of either. A longer text of a
            classification and a longer source lose tokens at their end; a longer target drops the row.
        loss: of a causal language model, see `loratlas.data.encode.encode`.
        config: of the model, or what `loratlas.models.config.load_config` takes; it limits positions, and the pad token
            of a classifier fills short rows.

    Raises:
        DataError: see `encode`; a label that the task does not have; rows that do not fit the task, or are longer than
            the model's positions.
    """
    config = load_config(config)
    if loss == "all" and task.name in (CLASSIFICATION, SEQ2SEQ):
        what = "label" if task.name == CLASSIFICATION else "target"
        raise DataError(
            given=f"loss over all tokens in a {task.name} task",
            found=f"only the {what} is predicted",
            instead="loss over the answer, the default",
        )
    if task.name == CLASSIFICATION:
        encoded = _classes(task, rows, tokenizer, max_length, config.get_text_config().pad_token_id)
        _check_ends(encoded, config)
    elif task.name == SEQ2SEQ:
        encoded = _pairs(task, rows, tokenizer, max_length)
    else:
        encoded = encode(rows, tokenizer, max_length=max_length, loss=loss)
    return fitted(encoded, config)


def _check_ends(encoded: Encoded, config: Any) -> None:
    """A classifier on an encoder-decoder reads the last end token, and wants as many of them in every row."""
    if not config.is_encoder_decoder:
        return
    ends = [int((example.input_ids == config.eos_token_id).sum()) for example in encoded.examples]
    odd = next((index for index, n in enumerate(ends) if not n or n != ends[0]), None)
    if odd is not None:
        raise DataError(
            given=f"{encoded.source}, row {encoded.examples[odd].row + 1}",
            found=f"{ends[odd]} end tokens after tokenisation, {ends[0]} in row {encoded.examples[0].row + 1}; "
            f"{config.model_type} classifies by the last one",
            instead="texts without the tokenizer's end token in them, or --task seq2seq",
        )


def _classes(task: Task, rows: Rows, tokenizer: Any, max_length: int, fill: int | None) -> Encoded:
    known: dict[int | str | None, int | None] = {None: None}
    for row in rows.rows:
        if row.label not in known:
            known[row.label] = label_index(row.label, task.labels) if row.label is not None else None
        if known[row.label] is None:
            raise DataError(
                given=f"{rows.source}, row {row.source_row + 1}",
                found=f"the label {row.label!r}, which the model does not know"
                if row.label is not None
                else "no label",
                instead=f"one of {', '.join(task.labels[:8])}{' …' if len(task.labels) > 8 else ''}",
            )
    examples, cut, empty = list[Example](), 0, 0
    for start in range(0, len(rows), CHUNK):
        part = rows.rows[start : start + CHUNK]
        for index, (ids, types, shortened) in enumerate(_texts(part, tokenizer, max_length), start=start):
            if not len(ids):
                empty += 1
                continue
            cut += shortened
            label = known[part[index - start].label]
            none = np.zeros(len(ids), dtype=bool)
            examples.append(Example(input_ids=ids, labelled=none, row=index, label=label, types=types))
    words = "none: the text" if len(rows.rows[0].texts) < 2 else "none: the pair of texts"
    return _encoded(task, rows, tokenizer, examples, fill, words, cut=cut, empty=empty)


def _texts(
    rows: Sequence[Row], tokenizer: Any, max_length: int
) -> list[tuple[np.ndarray, np.ndarray | None, bool]]:
    """Ids, which text of a pair each belongs to, and whether it was cut, of each row."""

    def write(some: Sequence[Row], **options: Any) -> Any:
        first, *second = (list(texts) for texts in zip(*(row.texts for row in some), strict=True))
        return tokenizer(first, *second, return_attention_mask=False, verbose=False, **options)

    encoded = write(rows)
    ids, types = list(encoded["input_ids"]), list(encoded.get("token_type_ids") or [None] * len(rows))
    long = [index for index, each in enumerate(ids) if len(each) > max_length]
    if long:
        shorter = write([rows[index] for index in long], truncation=True, max_length=max_length)
        for number, index in enumerate(long):
            ids[index] = shorter["input_ids"][number]
            types[index] = shorter["token_type_ids"][number] if types[index] is not None else None
        write(rows[:1])  # a fast tokenizer keeps cutting until that is switched off
    cut = set(long)
    return [
        (
            np.asarray(each, dtype=np.int32),
            np.asarray(kind, dtype=np.int8) if kind is not None and any(kind) else None,
            index in cut,
        )
        for index, (each, kind) in enumerate(zip(ids, types, strict=True))
    ]


def source_text(row: Row) -> str:
    """What an encoder-decoder reads: every turn before the answer, with blank lines between them."""
    return "\n\n".join(turn.content for turn in row.turns[: _answer(row)])


def target_text(row: Row) -> str:
    """What it is to write: the last answer."""
    index = _answer(row)
    return "" if index is None or not row.turns[index].counted else row.turns[index].content


def _answer(row: Row) -> int | None:
    return next((i for i in range(len(row.turns) - 1, -1, -1) if row.turns[i].role == "assistant"), None)


def _pairs(task: Task, rows: Rows, tokenizer: Any, max_length: int) -> Encoded:
    examples, cut, dropped, empty = list[Example](), 0, 0, 0
    for start in range(0, len(rows), CHUNK):
        part = rows.rows[start : start + CHUNK]
        for row in part:
            check_contents_only(row, "a source and a target, which hold contents only")
        options = {"return_attention_mask": False, "verbose": False}
        sources = tokenizer([source_text(row) for row in part], **options)["input_ids"]
        targets = tokenizer(text_target=[target_text(row) for row in part], **options)["input_ids"]
        for index, (source, target) in enumerate(zip(sources, targets, strict=True), start=start):
            row = part[index - start]
            if not (source_text(row).strip() and target_text(row).strip()):
                empty += 1
                continue
            if tokenizer.eos_token_id is not None and target[-1:] != [tokenizer.eos_token_id]:
                target = [
                    *target,
                    tokenizer.eos_token_id,
                ]  # what ends an answer is learnt like the rest of it
            if len(target) > max_length:
                dropped += 1
                continue
            if len(source) > max_length:
                # Its end token stays, if it has one.
                special = source[-1] in tokenizer.all_special_ids
                source = [*source[: max_length - special], *(source[-1:] if special else [])]
                cut += 1
            ids = np.asarray([*source, *target], dtype=np.int32)
            labelled = np.arange(len(ids)) >= len(source)
            examples.append(Example(input_ids=ids, labelled=labelled, row=index, source=len(source)))
    words = "none: source and target, each by itself"
    return _encoded(task, rows, tokenizer, examples, None, words, cut=cut, dropped=dropped, empty=empty)


def _encoded(
    task: Task,
    rows: Rows,
    tokenizer: Any,
    examples: Sequence[Example],
    fill: int | None,
    template: str,
    *,
    cut: int = 0,
    dropped: int = 0,
    empty: int = 0,
) -> Encoded:
    if not examples:
        raise DataError(
            given=rows.source,
            found=f"{dropped:,} targets longer than the limit and {empty:,} rows without a text or a target",
            instead="rows with both, or a larger --max-length",
        )
    report = EncodeReport.of(examples, rows=len(rows), cut=cut, dropped=dropped, empty=empty)
    return Encoded(
        examples=tuple(examples),
        report=report,
        digest=digest_of(examples),
        template=template,
        pad_id=pad_id(tokenizer) if fill is None else fill,
        source=rows.source,
        task=task,
    )
