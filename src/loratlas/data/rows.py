"""What the rows of a data set are: turns of text, labels, and what they carry for a chat template."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message.

    Args:
        role: system, user, assistant, tool, or text (raw text without a template).
        content: its text; of a content in parts, their texts joined.
        counted: False where the row says that the loss shall not count this turn (``weight`` 0, ``train`` false).
        extras: what else the message carries, key → value as written, for the chat template: ``tool_calls``,
            ``reasoning_content``, ``name`` …; under ``content`` a content that was written as a list of parts
            or as null. None where there is nothing else.

    >>> Turn(role="assistant", content="4", extras={"reasoning_content": "two and two"}).message()
    {'role': 'assistant', 'content': '4', 'reasoning_content': 'two and two'}
    """

    role: str
    content: str
    counted: bool = True
    extras: Mapping[str, Any] | None = field(default=None, hash=False)

    def message(self) -> dict[str, Any]:
        """The message as it was written, for a chat template."""
        return {"role": self.role, "content": self.content, **(self.extras or {})}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One example before tokenisation.

    Args:
        turns: the messages in order; every assistant (or text) turn is an answer.
        label: the class, a number or a word, for rows of label form.
        texts: the text, or the text and its pair, for rows of label form.
        source_row: index of the row in its source, from 0.
        tools: what the row offers the model to call, as written (``tools``), for the chat template.
        template_options: further variables for the chat template (``chat_template_kwargs``).
    """

    turns: tuple[Turn, ...]
    label: int | str | None = None
    texts: tuple[str, ...] = ()
    source_row: int
    tools: tuple[Any, ...] = field(default=(), hash=False)
    template_options: Mapping[str, Any] | None = field(default=None, hash=False)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of one source.

    Args:
        rows: the rows in the order of the source.
        form: one of `loratlas.data.records.row_forms.FORMS`.
        source: what the user wrote, with the split if one was named.
        remarks: sentences about the source that a person should read once (keys that no rule knows, with their
            count); commands print them.
    """

    rows: Sequence[Row]
    form: str
    source: str
    remarks: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the contents (`rows_digest`), independent of the source's name."""
        return rows_digest(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def rows_digest(rows: Iterable[Row]) -> str:
    """First 16 hex digits of the SHA-256 of turns and labels, and of all else that a template is given.

    >>> rows_digest([Row(turns=(Turn(role="user", content="a"),), source_row=0)])
    'bc8a62549ddf3aed'
    """
    digest = hashlib.sha256()
    for row in rows:
        content: list[Any] = [[[turn.role, turn.content] for turn in row.turns], row.label]
        content += [list(row.texts)] if len(row.texts) > 1 else []
        content += _carried(row)
        digest.update(
            json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        )
        digest.update(b"\n")
    return digest.hexdigest()[:16]


def _carried(row: Row) -> list[Any]:
    """What a row carries beyond texts and labels; nothing for most, whose digests stay what they were."""
    turns = {str(n): [t.counted, t.extras] for n, t in enumerate(row.turns) if t.extras or not t.counted}
    carried = {"turns": turns, "tools": list(row.tools), "template_options": row.template_options}
    carried = {key: value for key, value in carried.items() if value}
    return [carried] if carried else []
