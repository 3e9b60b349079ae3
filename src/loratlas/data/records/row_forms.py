"""Records become rows: turns of text, whatever form they came in.

Five forms, which are recognised by their fields; the first that fits wins:

=========  ==========================  =================================================================
form       fields                      what becomes of a row
=========  ==========================  =================================================================
messages   messages, or conversations  the turns as they are (``role`` and ``content``, or ``from`` and ``value``)
alpaca     instruction, output         turns of ``history``; user turn: instruction, blank line, ``input`` if any;
                                       answer: output
prompt     prompt, completion          user turn: prompt; answer: completion; either may be a list of messages
label      text, label                 user turn: text; answer: the label as text; both are kept as they are as well
text       text                        one turn of role ``text``: all of it is the answer
=========  ==========================  =================================================================

Forms with turns take ``system``, ``tools`` and ``chat_template_kwargs`` as well.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from loratlas.data.chat.messages import read_history, read_messages, read_options, read_tools
from loratlas.data.records.literals import Literal, has_surrogate, scalar_text
from loratlas.data.rows import Row, Turn
from loratlas.errors import DataError, printable

FORMS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "alpaca": ("instruction", "output"),
    "prompt": ("prompt", "completion"),
    "label": ("text", "label"),
    "text": ("text",),
}
"""Form → the fields that a row of it must have, in the order in which forms are tried."""

SHARED = "conversations"
"""What ShareGPT calls its messages."""

OPTIONAL: dict[str, tuple[str, ...]] = {
    "messages": ("system", "tools", "chat_template_kwargs"),
    "alpaca": ("input", "system", "history", "tools", "chat_template_kwargs"),
    "prompt": ("system", "tools", "chat_template_kwargs"),
    "label": ("text_pair",),
    "text": (),
}
"""Form → the fields that a row of it may have."""

WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowReader:
    """Reads records of one source as rows of one form.

    Args:
        form: one of `FORMS`.
        columns: field → column, of the fields that are read.
        source: what the user wrote, for errors.
        blank: what a missing value is called: a blank cell in CSV, else a missing field.
        classes: how many classes the source declares for ``label``.
        numbers: whether labels that are written as whole numbers are numbers, though they came as text.
    """

    form: str
    columns: Mapping[str, str]
    source: str
    blank: str = "missing field"
    classes: int | None = None
    numbers: bool = False

    def row(self, record: Mapping[str, Any], index: int, unknown: Counter[str] | None = None) -> Row:
        """The row of a record.

        Args:
            record: column → value, numbers as `Literal`.
            index: of the row, from 0.
            unknown: counts keys of messages that no rule knows.

        Raises:
            DataError: a field without a value, a value that is no text, a label that is no class.
        """
        values = {field: record.get(column) for field, column in self.columns.items()}

        def fail(found: str, instead: str) -> DataError:
            return DataError(given=self.source, found=f"{found} on row {index + 1}", instead=instead)

        def text(field: str, *, needed: bool = True) -> str | None:
            value = values.get(field)
            if value is None:
                if needed:
                    wanted = f"a row with {', '.join(FORMS[self.form])} (form {self.form!r})"
                    raise fail(f"{self.blank} {self.columns.get(field, field)!r}", wanted)
                return None
            written = scalar_text(value)
            if written is None:
                raise fail(f"field {field!r} is a {type(value).__name__}, not a text", "a text")
            return written

        def needed(field: str) -> str:
            return text(field) or ""

        def turns(field: str, role: str) -> list[Turn]:
            # A prompt or completion may itself be a list of messages.
            value = values.get(field)
            if isinstance(value, list):
                return read_messages(value, field, fail, unknown)
            return [Turn(role=role, content=needed(field))]

        label, texts = None, ()
        if self.form == "text":
            dialogue = [Turn(role="text", content=needed("text"))]
        elif self.form == "label":
            label = self._label(values.get("label"), fail)
            texts = tuple(needed(field) for field in ("text", "text_pair") if field in self.columns)
            dialogue = [
                Turn(role="user", content="\n\n".join(texts)),
                Turn(role="assistant", content=str(label)),
            ]
        elif self.form == "alpaca":
            instruction, extra = needed("instruction"), text("input", needed=False)
            asked = f"{instruction}\n\n{extra}" if extra and extra.strip() else instruction
            past = read_history(values["history"], fail) if values.get("history") else []
            dialogue = [
                *past,
                Turn(role="user", content=asked),
                Turn(role="assistant", content=needed("output")),
            ]
        elif self.form == "prompt":
            dialogue = [*turns("prompt", "user"), *turns("completion", "assistant")]
        else:
            value = values.get("messages")
            if value is None:
                raise fail(f"{self.blank} {self.columns['messages']!r}", "a list of {role, content}")
            dialogue = read_messages(value, self.columns["messages"], fail, unknown)
        system = text("system", needed=False) if "system" in self.columns else None
        if system and system.strip():
            if dialogue[0].role == "system":
                raise fail("two system turns, one in 'system' and one in the messages", "one of them")
            dialogue = [Turn(role="system", content=system), *dialogue]
        return Row(
            turns=tuple(dialogue),
            label=label,
            texts=texts,
            source_row=index,
            tools=read_tools(values["tools"], fail) if values.get("tools") is not None else (),
            template_options=read_options(values.get("chat_template_kwargs"), fail),
        )

    def check_characters(self, record: Mapping[str, Any], index: int) -> None:
        """Refuse half a character in a column that is read: no tokenizer takes it."""
        for column in self.columns.values():
            if has_surrogate(record.get(column)):
                raise DataError(
                    given=self.source,
                    found=f"half a character (a lone surrogate, \\ud800 to \\udfff) in {printable(column)!r} "
                    f"on row {index + 1}",
                    instead="the whole character, or U+FFFD in its stead",
                )

    def _label(self, value: Any, fail: Any) -> int | str:
        words = "a class number from 0, or a class's name"
        if value is None:
            raise fail(f"{self.blank} {self.columns['label']!r}", words)
        if isinstance(value, str) and not isinstance(value, Literal):
            if not value.strip():
                raise fail("an empty label", f"{words}; leave rows without a class out")
            if not self.numbers:
                return value
        if not isinstance(value, str) or not WHOLE_NUMBER.fullmatch(value):
            shown = printable(scalar_text(value) or repr(value))
            raise fail(f"label {shown} is neither an integer nor a text", words)
        number = int(value)
        if number < 0 or (self.classes is not None and number >= self.classes):
            upper = f" to {self.classes - 1}" if self.classes is not None else ""
            raise fail(
                f"label out of range: {number}",
                f"a class number from 0{upper}; leave rows without a class out",
            )
        return number

    def with_numbers(self) -> RowReader:
        """The same, with labels such as ``0`` and ``1`` as class numbers; their spelling is the same."""
        return replace(self, numbers=True)


def map_columns(columns: Iterable[str], mapping: Mapping[str, str], source: str) -> dict[str, str]:
    """Field → column, after the user's mapping. A mapped column no longer answers to its own name.

    Raises:
        DataError: a field that no form has, or a column that the source has not, with the nearest.
    """
    columns = list(columns)
    fields = {name for form in FORMS for name in (*FORMS[form], *OPTIONAL[form])}
    for name, column in mapping.items():
        given = f"--map {printable(name)}={printable(column)}"
        if name not in fields:
            raise DataError(
                given=given,
                found=f"no form has a field {printable(name)!r}",
                instead=nearest(name, sorted(fields)),
            )
        if column not in columns:
            raise DataError(
                given=given,
                found=f"{source} has no column {printable(column)!r}; it has {named(columns)}",
                instead=nearest(column, columns),
            )
    own = {column: column for column in columns if column not in mapping.values()}
    fields_of = own | dict(mapping)
    if "messages" not in fields_of and SHARED in fields_of:
        fields_of["messages"] = fields_of.pop(SHARED)
    return fields_of


def form_of(fields: Mapping[str, str], source: str) -> str:
    """The first form whose fields are there.

    Raises:
        DataError: none fits.
    """
    for form, needed in FORMS.items():
        if all(field in fields for field in needed):
            return form
    raise DataError(
        given=source,
        found=f"the fields {named(fields) or '(none)'}, which are none of the known forms",
        instead=f"fields {forms_in_words()}, or --map FIELD=COLUMN (for example --map prompt=question)",
    )


def fields_read(form: str, fields: Mapping[str, str]) -> dict[str, str]:
    """Of field → column, what a form reads."""
    return {name: fields[name] for name in (*FORMS[form], *OPTIONAL[form]) if name in fields}


def forms_in_words() -> str:
    """What a row may consist of, for errors."""
    return " or ".join("/".join(fields) for fields in FORMS.values())


def named(columns: Iterable[str], most: int = 12) -> str:
    """Names of columns, safe to print and not too many."""
    columns = list(columns)
    more = f" and {len(columns) - most} more" if len(columns) > most else ""
    return ", ".join(printable(column, 60) for column in columns[:most]) + more


def nearest(word: str, choices: Iterable[str]) -> str:
    """The choice that a word was probably meant to be, or all of them."""
    choices = list(choices)
    close = get_close_matches(
        word[:100], [choice for choice in choices[:1000] if len(choice) <= 100], n=1, cutoff=0.5
    )
    return f"{printable(close[0])!r}, the nearest" if close else f"one of {named(choices)}"
