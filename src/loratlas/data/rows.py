"""Files and Hub data sets become rows: turns of text, whatever form they came in.

Five forms, told apart by their fields, the first that fits wins:

=========  =========================  ==================================================================
form       fields                     what becomes of a row
=========  =========================  ==================================================================
messages   messages                   the turns as they are (``role`` and ``content`` each)
alpaca     instruction, output        user turn: instruction, blank line, ``input`` if any; answer: output
prompt     prompt, completion         user turn: prompt; answer: completion
label      text, label                user turn: text; answer: the label as text; text and label are kept apart as well
text       text                       one turn of role ``text``: all of it is the answer
=========  =========================  ==================================================================
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from loratlas.data.read_files import read_table
from loratlas.errors import DataError

FORMS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "alpaca": ("instruction", "output"),
    "prompt": ("prompt", "completion"),
    "label": ("text", "label"),
    "text": ("text",),
}
"""Form → the fields that a row of it must have, in the order in which forms are tried."""

OPTIONAL = ("input", "system", "text_pair")
"""Fields that a row may have: ``input`` in alpaca form, ``system`` in alpaca and prompt form, ``text_pair`` (a second
text) in label form."""

ROLES = ("system", "user", "assistant", "tool")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of one source.

    Args:
        rows: the rows in the order of the source.
        form: one of ``FORMS``.
        source: what the user wrote, with the split if one was named.
        digest: first 16 hex digits of the SHA-256 of the contents (`rows_digest`), independent of the
            source's name.
        remarks: sentences about the source that a person should read once (keys that no rule knows, with their
            count); commands print them.
    """

    rows: tuple[Row, ...]
    form: str
    source: str
    digest: str
    remarks: tuple[str, ...] = ()

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


def load_rows(
    source: str,
    *,
    split: str | None = None,
    mapping: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> Rows:
    """Read rows from a local file or the Hub.

    Args:
        source: a JSON, JSONL, CSV or Parquet file (also ``.gz``), a folder of them, or a Hub id
            (``owner/name`` or ``owner/name:config``).
        split: as `datasets` writes it: ``train``, ``test``, ``train[:1000]``. Without it: ``train``, or the
            only one.
        mapping: field of a form → column of the source, ``{"prompt": "question"}``.
        limit: keep only the first so many rows.

    Raises:
        DataError: no such file or data set, broken JSON (with its line), a missing field (with its row), a
            label that is neither a class number nor a word, an empty file, or a form that is none of ``FORMS``.
    """
    if limit is not None and limit < 1:
        raise DataError(
            given=f"a limit of {limit} rows", found="no row left", instead="a limit of at least 1"
        )
    table = read_table(source, split=split)
    columns = _mapped(table.columns, mapping or {}, source)
    form = _form(tuple(columns), source)
    records = table.records[:limit] if limit is not None else table.records
    if not records:
        raise DataError(
            given=source, found="no rows in it", instead=f"a file with rows of {_forms_in_words()}"
        )
    rows = tuple(
        _row(
            {field: record.get(column) for field, column in columns.items()},
            form,
            index,
            source,
            table.classes,
        )
        for index, record in enumerate(records)
    )
    _check_kinds(rows, source)
    name = f"{source} [{split}]" if split else source
    return Rows(rows=rows, form=form, source=name, digest=rows_digest(rows))


def _check_kinds(rows: tuple[Row, ...], source: str) -> None:
    """Refuse labels of which some are numbers and some are words."""
    first = rows[0].label
    for number, row in enumerate(rows, start=1):
        if type(row.label) is not type(first):
            raise DataError(
                given=source,
                found=f"labels of two kinds: {first!r} on row 1, {row.label!r} on row {number}",
                instead="numbers or words, not both",
            )


def _mapped(columns: tuple[str, ...], mapping: Mapping[str, str], source: str) -> dict[str, str]:
    """Field → column, after the user's mapping. A mapped column no longer answers to its own name."""
    fields = {*OPTIONAL, *(name for form in FORMS.values() for name in form)}
    for name, column in mapping.items():
        if name not in fields:
            raise DataError(
                given=f"--map {name}={column}",
                found=f"no form has a field {name!r}",
                instead=_nearest(name, sorted(fields)),
            )
        if column not in columns:
            raise DataError(
                given=f"--map {name}={column}",
                found=f"{source} has no column {column!r}; it has {', '.join(columns)}",
                instead=_nearest(column, columns),
            )
    own = {column: column for column in columns if column not in mapping.values()}
    return own | dict(mapping)


def _nearest(word: str, choices: Iterable[str]) -> str:
    choices = list(choices)
    close = get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"{close[0]!r}, the nearest" if close else f"one of {', '.join(choices)}"


def _forms_in_words() -> str:
    return " or ".join("/".join(fields) for fields in FORMS.values())


def _form(columns: tuple[str, ...], source: str) -> str:
    for form, fields in FORMS.items():
        if all(field in columns for field in fields):
            return form
    raise DataError(
        given=source,
        found=f"the fields {', '.join(columns) or '(none)'}, which are none of the known forms",
        instead=f"fields {_forms_in_words()}, or --map FIELD=COLUMN (for example --map prompt=question)",
    )


def _row(record: dict[str, Any], form: str, index: int, source: str, classes: int | None) -> Row:
    def fail(found: str, instead: str) -> DataError:
        return DataError(given=source, found=f"{found} on row {index + 1}", instead=instead)

    def text(field: str) -> str:
        value = record.get(field)
        if value is None:
            raise fail(f"missing field {field!r}", f"a row with {', '.join(FORMS[form])} (form {form!r})")
        if isinstance(value, (list, dict)):
            raise fail(f"field {field!r} is a {type(value).__name__}, not a text", "a text")
        return value if isinstance(value, str) else str(value)

    def turns(field: str, role: str) -> list[Turn]:
        # A prompt or completion may itself be a list of messages.
        value = record.get(field)
        if isinstance(value, (list, tuple)):
            return [_turn(message, field, number, fail) for number, message in enumerate(value)]
        return [Turn(role=role, content=text(field))]

    def system() -> list[Turn]:
        # Only a text of its own is a system turn; an empty column says nothing.
        value = record.get("system")
        return [Turn(role="system", content=value)] if isinstance(value, str) and value.strip() else []

    label, texts = None, ()
    if form == "messages":
        messages = record.get("messages")
        if messages is None:
            raise fail("missing field 'messages'", "a list of {role, content}")
        if not isinstance(messages, (list, tuple)) or not messages:
            raise fail("field 'messages' is no list of messages", "a list of {role, content}")
        found = [_turn(message, "messages", number, fail) for number, message in enumerate(messages)]
    elif form == "alpaca":
        instruction, extra = text("instruction"), record.get("input")
        asked = f"{instruction}\n\n{extra}" if isinstance(extra, str) and extra.strip() else instruction
        found = [*system(), Turn(role="user", content=asked), Turn(role="assistant", content=text("output"))]
    elif form == "prompt":
        found = [*system(), *turns("prompt", "user"), *turns("completion", "assistant")]
    elif form == "label":
        label = _label(record.get("label"), classes, fail)
        texts = (text("text"), text("text_pair")) if "text_pair" in record else (text("text"),)
        found = [Turn(role="user", content="\n\n".join(texts)), Turn(role="assistant", content=str(label))]
    else:
        found = [Turn(role="text", content=text("text"))]
    return Row(turns=tuple(found), label=label, texts=texts, source_row=index)


def _turn(message: Any, field: str, number: int, fail: Any) -> Turn:
    where = f"message {number + 1} of {field!r}"
    if not isinstance(message, Mapping):
        raise fail(f"{where} is no object", "messages as {role, content}")
    role, content = message.get("role"), message.get("content")
    if role is None or content is None:
        missing = "role" if role is None else "content"
        raise fail(f"{where} has a missing field {missing!r}", "messages as {role, content}")
    if role not in ROLES:
        raise fail(f"{where} has the role {role!r}", f"one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise fail(f"{where} has a content that is no text", "a text as content")
    return Turn(role=role, content=content)


def _label(value: Any, classes: int | None, fail: Any) -> int | str:
    words = "a class number from 0, or a class's name"
    if value is None:
        raise fail("missing field 'label'", words)
    if isinstance(value, str):
        if not value.strip():
            raise fail("an empty label", f"{words}; leave rows without a class out")
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, int):
        raise fail(f"label {value!r} is neither an integer nor a text", words)
    if value < 0 or (classes is not None and value >= classes):
        upper = f" to {classes - 1}" if classes is not None else ""
        raise fail(
            f"label out of range: {value}", f"a class number from 0{upper}; leave rows without a class out"
        )
    return value
