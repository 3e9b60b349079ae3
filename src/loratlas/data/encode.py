"""Rows become token ids, with a mark on every token that the loss counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loratlas.data.chat.carried_text import carries
from loratlas.data.chat.chat_template import Rendered, chat_beginning, render, template_name
from loratlas.data.chat.chat_writer import CALLS, THOUGHTS
from loratlas.data.examples import Encoded, EncodeReport, Example, digest_of
from loratlas.data.rows import Row, Rows, Turn
from loratlas.data.token_marks import tokenise
from loratlas.errors import DataError, ModelError
from loratlas.models.config import own_code, wants_own_code
from loratlas.models.gguf_base import readable

CHUNK = 4096
"""Texts tokenised in one call; large enough for the tokenizer's own threads, small enough for the memory."""


def load_tokenizer(source: str | Path) -> Any:
    """The tokenizer of a local directory, a GGUF file or a Hub id. One without a pad token is fine: none is added.

    Raises:
        ModelError: there is none, or it cannot be reached.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(readable(source)), trust_remote_code=False)
        most = tokenizer.model_max_length
        if isinstance(most, bool) or not isinstance(most, (int, float)):
            raise ValueError(f"model_max_length {str(most)[:40]!r}, which is no number")
        if not tokenizer("a 1", add_special_tokens=False)["input_ids"]:
            # Where a folder has a config alone, transformers makes one up.
            raise ValueError(f"a vocabulary, of {len(tokenizer):,}, that spells nothing")
        return tokenizer
    except ModelError:
        raise
    except Exception as error:  # transformers raises a dozen kinds here
        if wants_own_code(error):
            raise own_code(str(source)) from error
        words = " ".join(str(error).split())[:300]
        raise ModelError(
            given=str(source),
            found=f"no tokenizer could be read there ({words})",
            instead="a directory with tokenizer.json or a Hub id of a model with a tokenizer",
        ) from error


def pad_id(tokenizer: Any) -> int:
    """The id for padded positions: pad, else eos, else sep, else 0. They are masked and never counted."""
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
    """The tokens with which the chat template begins every conversation: special ones that occur once."""
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
    cut = dropped = empty = unstopped = respaced = unnamed = 0
    for index, (row, rendered, ids, labelled) in enumerate(_tokens(rows, tokenizer, opening)):
        if loss == "answer" and not (any(map(_says, row.turns)) and labelled[1:].any()):
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
        unstopped += any(answer.stop == answer.end and not answer.marked for answer in rendered.answers)
        respaced += any(answer.respaced for answer in rendered.answers)
        unnamed += rendered.unnamed
        examples.append(Example(input_ids=ids, labelled=counted, row=index))
    report = EncodeReport.of(
        examples,
        rows=len(rows),
        cut=cut,
        dropped=dropped,
        empty=empty,
        unstopped=unstopped,
        respaced=respaced,
        unnamed=unnamed,
    )
    if not examples:
        raise _nothing_left(rows, report, max_length)
    return Encoded(
        examples=tuple(examples),
        report=report,
        digest=digest_of(examples),
        template=template_name(tokenizer, rows.form),
        pad_id=pad_id(tokenizer),
        source=rows.source,
        tokenizer_size=len(tokenizer),
    )


def _tokens(
    rows: Rows, tokenizer: Any, opening: Sequence[int]
) -> Iterator[tuple[Row, Rendered, np.ndarray, np.ndarray]]:
    """Each row with its text, ids and answer marks. A chunk of rows is tokenised in one call."""
    begin = np.asarray(opening, dtype=np.int32)
    for start in range(0, len(rows), CHUNK):
        some = rows.rows[start : start + CHUNK]
        rendered = [render(row, tokenizer) for row in some]
        for row, text, (ids, marks) in zip(some, rendered, tokenise(rendered, tokenizer), strict=True):
            if len(begin):
                ids, marks = np.concatenate([begin, ids]), np.concatenate([begin != begin, marks])
            yield row, text, ids, marks


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
