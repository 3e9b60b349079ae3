"""Which evaluation rows belong together: they share a prompt, a document or a row of the source, and count once.

Rows that answer one prompt are not independent examples of the task: whatever an arm makes of the prompt is in all of
them. Rows are joined where they have

- the same tokens before their first counted token (the prompt, after the template), or for a class the same text,
- the same row of the source,
- a longer text of the prompt in common, word for word: one turn's paragraph of `DOCUMENT` characters or more.

What all rows share says nothing: a prompt or paragraph that more than half of them have is the task's frame.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loratlas.data.examples import Encoded, Example
    from loratlas.data.rows import Row, Rows

DOCUMENT = 200
"""Characters from which a paragraph is a document."""


def clusters_of(encoded: Encoded, rows: Rows | None = None) -> tuple[int, ...] | None:
    """One number for each example, equal within a cluster; None where no two examples belong together.

    Args:
        encoded: the evaluation rows as tokens.
        rows: the rows that they were made of, for documents.
    """
    examples = encoded.examples
    keys = [set(_keys(example, rows.rows[example.row] if rows is not None else None)) for example in examples]
    counts = Counter(key for held in keys for key in held)
    most = len(examples) / 2
    parent = list(range(len(examples)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[Hashable, int] = {}
    for index, held in enumerate(keys):
        for key in held:
            if 1 < counts[key] <= max(most, 1):
                parent[root(index)] = root(first.setdefault(key, index))
    roots = [root(index) for index in range(len(examples))]
    if len(set(roots)) == len(examples):
        return None
    numbers = {held: number for number, held in enumerate(dict.fromkeys(roots))}
    return tuple(numbers[held] for held in roots)


def _keys(example: Example, row: Row | None) -> Iterator[Hashable]:
    yield ("row", example.row)
    ids = example.input_ids
    if example.label is not None:
        yield ("prompt", ids.tobytes())
        return
    begins = int(example.labelled.argmax()) if example.labelled.any() else len(ids)
    # Of raw text nothing comes before the first token: the same text is the same document.
    yield ("prompt", ids[:begins].tobytes()) if begins > 1 else ("text", ids.tobytes())
    if row is None:
        return
    for turn in row.turns:
        if turn.role != "assistant" and turn.role != "text":
            for paragraph in turn.content.split("\n\n"):
                if len(paragraph) >= DOCUMENT:
                    yield ("document", paragraph.strip())
