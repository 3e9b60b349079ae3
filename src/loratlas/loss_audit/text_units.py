"""How much text the counted tokens stand for: what makes losses of two tokenizers comparable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from loratlas.data.chat.chat_template import render
from loratlas.data.encode import encode
from loratlas.data.examples import Encoded
from loratlas.errors import DataError

if TYPE_CHECKING:
    from loratlas.data.rows import Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Sizes of each example's counted text, without the token that ends it.

    Args:
        bytes: int64 [N]; of UTF-8.
        characters: int64 [N]; Unicode code points.
        words: int64 [N]; what white space separates.
    """

    bytes: np.ndarray
    characters: np.ndarray
    words: np.ndarray

    @staticmethod
    def of(texts: list[str]) -> Texts:
        """Count texts.

        >>> found = Texts.of(["Grüß Gott"])
        >>> int(found.bytes[0]), int(found.characters[0]), int(found.words[0])
        (11, 9, 2)
        """
        return Texts(
            bytes=np.array([len(t.encode("utf-8", "replace")) for t in texts], dtype=np.int64),
            characters=np.array([len(t) for t in texts], dtype=np.int64),
            words=np.array([len(t.split()) for t in texts], dtype=np.int64),
        )


def texts_of(encoded: Encoded, rows: Rows, tokenizer: Any) -> Texts:
    """Count the text behind the counted tokens of every example.

    Whole rows are counted as they were written, so that a tokenizer that loses capitals or accents gets no smaller
    text. Of a row that lost counted tokens to the length limit, what is left is decoded.

    Args:
        encoded: what was scored.
        rows: the rows that it was made of.
        tokenizer: the one that made it.

    Raises:
        DataError: rows that ``encoded`` was not made of.
    """
    whole = {}
    if encoded.report.cut:
        full = encode(rows, tokenizer, max_length=2**30)
        whole = {e.row: int(e.labelled.sum()) for e in full.examples}
    texts = []
    for example in encoded.examples:
        if example.row >= len(rows):
            raise DataError(
                given=f"{len(rows)} rows to count the text of",
                found=f"an example of row {example.row}",
                instead="the rows that were encoded",
            )
        everything = bool(example.labelled[1:].all())
        rendered = render(rows.rows[example.row], tokenizer)
        if not everything and whole.get(example.row, int(example.labelled.sum())) != example.labelled.sum():
            texts.append(tokenizer.decode(example.input_ids[example.labelled], skip_special_tokens=True))
        elif everything and encoded.report.cut:
            texts.append(tokenizer.decode(example.input_ids, skip_special_tokens=True))
        else:
            texts.append(rendered.text_without_stops() if everything else rendered.counted())
    return Texts.of(texts)
