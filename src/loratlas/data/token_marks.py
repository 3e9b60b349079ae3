"""From characters to tokens: a text is tokenised once, and a token counts if it holds a counted character."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from loratlas.data.chat.chat_template import Rendered
from loratlas.errors import DataError, ModelError, printable


def tokenise(texts: Sequence[Rendered], tokenizer: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids and marks of each text, without special tokens of the tokenizer's own.

    The backend is asked directly where it is set to do nothing else (no padding, no truncation). Of a byte-level
    tokenizer each id stands for bytes of its own, so that the ends of tokens are sums; of any other the backend says
    them, which takes three times as long.

    Args:
        texts: what `render` returned.
        tokenizer: of transformers.

    Returns:
        ``(ids int32 [n], marks bool [n])`` per text.

    Raises:
        DataError: a token that holds letters of an answer and of something else; half of a surrogate pair.
    """
    if not texts:
        return []
    written = [rendered.text for rendered in texts]
    for rendered in texts:
        _check_writable(rendered)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    direct = backend is not None and backend.truncation is None and backend.padding is None
    sizes = _byte_sizes(tokenizer) if direct else None
    marked: list[tuple[np.ndarray, np.ndarray] | None] = [None] * len(texts)
    if backend is not None and sizes is not None:
        for n, encoding in enumerate(backend.encode_batch_fast(written, add_special_tokens=False)):
            ids = np.asarray(encoding.ids, dtype=np.int32)
            ends = np.cumsum(sizes[ids])
            if (ends[-1] if len(ends) else 0) == len(written[n].encode()):
                marked[n] = ids, _marks_in_bytes(texts[n], ends)
    left = [n for n, each in enumerate(marked) if each is None]
    others = _with_offsets([written[n] for n in left], tokenizer, direct)
    for n, (ids, offsets) in zip(left, others, strict=True):
        marked[n] = np.asarray(ids, dtype=np.int32), _marks_in_characters(texts[n], offsets)
    return [each for each in marked if each is not None]


def _with_offsets(
    texts: list[str], tokenizer: Any, direct: bool
) -> list[tuple[list[int], list[tuple[int, int]]]]:
    if not texts:
        return []
    if direct:
        encodings = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        return [(encoding.ids, encoding.offsets) for encoding in encodings]
    options: dict[str, Any] = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(texts, return_offsets_mapping=True, **options)
        return list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))
    ids = tokenizer(texts, **options)["input_ids"]
    return [
        (each, _offsets_by_prefixes(text, each, tokenizer)) for text, each in zip(texts, ids, strict=True)
    ]


def _offsets_by_prefixes(text: str, ids: list[int], tokenizer: Any) -> list[tuple[int, int]]:
    """Offsets from a tokenizer that knows none: token by token, the text that is decoded so far."""
    offsets, at = [], 0
    for n in range(len(ids)):
        piece = tokenizer.decode(ids[: n + 1], clean_up_tokenization_spaces=False)
        end = max(at, min(len(text), len(piece)))
        if not text.startswith(piece.rstrip("\ufffd")):
            raise ModelError(
                given="a tokenizer without offsets",
                found="decoded, its tokens are another text than it read",
                instead="a fast tokenizer (tokenizer.json)",
            )
        offsets.append((at, end))
        at = end
    return offsets


_SIZES: WeakKeyDictionary[Any, tuple[int, np.ndarray | None]] = WeakKeyDictionary()


def _byte_sizes(tokenizer: Any) -> np.ndarray | None:
    """Bytes that each id stands for, int64 [vocabulary], of a byte-level tokenizer; None of any other."""
    known = _SIZES.get(tokenizer)
    if known is None or known[0] != len(tokenizer):
        known = _SIZES[tokenizer] = len(tokenizer), _measured(tokenizer)
    return known[1]


def _measured(tokenizer: Any) -> np.ndarray | None:
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None or "ByteLevel" not in str(backend.pre_tokenizer):
        return None
    added = dict(tokenizer.added_tokens_decoder)
    if any(token.lstrip or token.rstrip for token in added.values()):
        return None
    vocabulary = tokenizer.get_vocab()
    letters = set(pre_tokenizers.ByteLevel.alphabet())
    sizes = np.zeros(max(vocabulary.values(), default=-1) + 1, dtype=np.int64)
    for token, token_id in vocabulary.items():
        if token_id in added:
            sizes[token_id] = len(added[token_id].content.encode())
        elif letters.issuperset(token):
            sizes[token_id] = len(token)
        else:
            return None
    return sizes


def _marks_in_bytes(rendered: Rendered, ends: np.ndarray) -> np.ndarray:
    written = rendered.text.encode()
    begins = np.concatenate([ends[:1] * 0, ends[:-1]])
    marks = np.zeros(len(ends), dtype=bool)
    for answer in rendered.answers:
        if rendered.text.isascii():
            start, stop = answer.start, answer.stop
        else:
            start, stop = (len(rendered.text[:at].encode()) for at in (answer.start, answer.stop))
        first, last = np.searchsorted(ends, start, side="right"), np.searchsorted(begins, stop, side="left")
        if first >= last:
            continue
        marks[first:last] = True
        _check(written[begins[first] : start], written[stop : ends[last - 1]], rendered)
    return marks


def _marks_in_characters(rendered: Rendered, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    spans = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    # A token begins where the one before it ends: tokenizers leave white space out of offsets, and share a character
    # among the tokens that it is made of.
    ends = np.maximum.accumulate(spans[:, 1]) if len(spans) else spans[:, 1]
    begins = np.minimum(spans[:, 0], np.concatenate([ends[:1] * 0, ends[:-1]]))
    marks = np.zeros(len(ends), dtype=bool)
    for answer in rendered.answers:
        inside = np.flatnonzero((ends > answer.start) & (begins < answer.stop))
        if not len(inside):
            continue
        marks[inside] = True
        first, last = int(begins[inside[0]]), int(ends[inside[-1]])
        _check(
            rendered.text[first : answer.start].encode(), rendered.text[answer.stop : last].encode(), rendered
        )
    return marks


def _check(before: bytes, behind: bytes, rendered: Rendered) -> None:
    """White space may share a token with an answer, as a word does with the space before it; letters may not."""
    for other in (before, behind):
        if other.strip():
            words = printable(other.decode(errors="replace"), limit=30)
            raise DataError(
                given=f"row {rendered.row + 1}",
                found=f"one token for {words!r} of the template and letters of the answer next to it",
                instead="an answer that begins and ends with a word or a space, or another template",
            )


def _check_writable(rendered: Rendered) -> None:
    try:
        rendered.text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            given=f"row {rendered.row + 1}",
            found=f"half of a surrogate pair ({rendered.text[error.start]!a}), which is no character",
            instead="text that can be written as UTF-8",
        ) from error
