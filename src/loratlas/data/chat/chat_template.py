"""From a row to its text, and which characters of the text are answers.

Where the tokenizer has a chat template, that template writes the text. Where it has none, this one does:

* a system turn: its content and a blank line;
* a user (or tool) turn: its content, a blank line, ``Answer:`` and a line break;
* an assistant turn: its content and the tokenizer's end token.

It costs about five tokens per exchange. A turn of role ``text`` is written as it is, with the end token.

Nothing is cut: the text is that of the whole conversation, and answers are given as characters of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loratlas.data.chat.answer_spans import Span, answer_spans
from loratlas.data.chat.carried_text import carries
from loratlas.data.chat.chat_writer import (
    CALLS,
    THOUGHTS,
    ChatWriter,
    arguments_of,
    chat_writer,
    with_arguments,
)
from loratlas.data.chat.marked_answers import marked_spans
from loratlas.data.chat.template_probes import Unclear
from loratlas.data.chat.template_sandbox import TemplateFailure
from loratlas.data.rows import Row, Turn
from loratlas.errors import DataError, printable

PLAIN_TEMPLATE = "{system}\n\n{user}\n\nAnswer:\n{assistant}{eos}"
"""The plain template in one line, as reports name it."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row as text.

    Args:
        text: all of it.
        answers: what of it the loss counts, in order; the spans do not overlap.
        row: index of the row in its source, from 0.
        unnamed: whether a tool's message has a name that is not written.
    """

    text: str
    answers: tuple[Span, ...]
    row: int = 0
    unnamed: bool = False

    def counted(self) -> str:
        """The text of the answers, without what stops them."""
        return "".join(self.text[answer.start : answer.end] for answer in self.answers)

    def text_without_stops(self) -> str:
        """All of the text but what stops the answers."""
        kept, at = "", 0
        for answer in self.answers:
            kept, at = kept + self.text[at : answer.end], answer.stop
        return kept + self.text[at:]


def template_name(tokenizer: Any, form: str) -> str:
    """What reports say about the template: the tokenizer's own, the plain one, or none for raw text."""
    if form == "text":
        return "none: the text and the end token"
    return "the tokenizer's chat template" if tokenizer.chat_template else f"plain: {PLAIN_TEMPLATE!r}"


def end_token(tokenizer: Any) -> str:
    """The token that ends an answer: eos, else sep, else nothing."""
    return tokenizer.eos_token or tokenizer.sep_token or ""


def chat_beginning(tokenizer: Any) -> str | None:
    """What the chat template writes of two short exchanges; None where it refuses them."""
    turns = tuple(Turn(role=role, content="w") for role in ("user", "assistant") * 2)
    row = Row(turns=turns, source_row=0)
    writer = chat_writer(tokenizer, row)
    try:
        return writer.write(writer.messages(row))
    except TemplateFailure:
        return None


def render(row: Row, tokenizer: Any) -> Rendered:
    """Write a row as text and say which of its characters are answers.

    Args:
        row: the turns.
        tokenizer: its chat template and its special tokens are used.

    Raises:
        DataError: the chat template refuses the turns, does not write what they carry, goes on without end, or writes
            an answer so that its characters cannot be identified.
    """
    if len(row.turns) == 1 and row.turns[0].role == "text":
        content = row.turns[0].content
        text = content + end_token(tokenizer)
        return Rendered(
            text, (Span(turn=0, start=0, end=len(content), stop=len(text)),) if text else (), row.source_row
        )
    if not tokenizer.chat_template:
        return _plain(row, end_token(tokenizer))
    return _chat(row, chat_writer(tokenizer, row))


def check_contents_only(row: Row, writer: str) -> None:
    """Refuse a row that carries what only a chat template writes.

    Args:
        row: the turns.
        writer: what writes it, in words.

    Raises:
        DataError: calls, tools, thoughts, or parts that are no text.
    """
    if row.tools:
        raise _unwritten(row, "tools", None, writer)
    for number, turn in enumerate(row.turns, start=1):
        for key in (*CALLS, *THOUGHTS):
            if carries(turn, key):
                raise _unwritten(row, key, number, writer)
        if turn.role != "tool" and carries(turn, "name"):
            raise _unwritten(row, "name", number, writer)
        _check_parts(row, turn, number)


def _check_parts(row: Row, turn: Turn, number: int) -> None:
    content = (turn.extras or {}).get("content")
    for part in content if isinstance(content, list) else ():
        if isinstance(part, Mapping) and part.get("type", "text") != "text":
            kind = printable(str(part.get("type")))
            raise _unwritten(row, f"a content part of type {kind!r}", number, "a model of text")


def _plain(row: Row, end: str) -> Rendered:
    check_contents_only(row, "the plain template, which writes contents only")
    text, spans = "", list[Span]()
    for n, turn in enumerate(row.turns):
        start = len(text)
        if turn.role == "assistant":
            text += turn.content + end
            if turn.counted and len(text) > start:
                spans.append(Span(turn=n, start=start, end=start + len(turn.content), stop=len(text)))
        else:
            text += turn.content + ("\n\n" if turn.role == "system" else "\n\nAnswer:\n")
    return Rendered(text, tuple(spans), row.source_row, unnamed=any(map(_is_named_tool, row.turns)))


def _is_named_tool(turn: Turn) -> bool:
    return turn.role == "tool" and carries(turn, "name")


def _chat(row: Row, writer: ChatWriter) -> Rendered:
    variables: dict[str, Any] = dict(row.template_options or {})
    if row.tools:
        variables["tools"] = list(row.tools)
    messages = writer.messages(row)
    try:
        messages, text = _written(messages, writer, variables)
        unnamed = _check_written(row, messages, text, writer, variables)
        if writer.template.marks_answers:
            text, spans = marked_spans(row.turns, messages, writer, variables)
        else:
            spans = answer_spans(row.turns, messages, text, writer, variables)
    except TemplateFailure as error:
        raise DataError(
            given=_given(row),
            found=f"the template refuses these turns ({error})",
            instead="turns as the template takes them (often: no system turn, user and assistant in turn)",
        ) from error
    except Unclear as error:
        raise DataError(
            given=_given(row),
            found=f"{error} ({writer.line()})",
            instead="a template that marks answers with {% generation %}, or a tokenizer without a template",
        ) from error
    return Rendered(text, tuple(spans), row.source_row, unnamed=unnamed)


def _written(
    messages: list[dict[str, Any]], writer: ChatWriter, variables: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], str]:
    """The messages and their text. Arguments of calls that are JSON in a text become objects, as templates expect; for
    one that wants the text (it raises, or writes the object as Python would) they stay as they are."""
    read = with_arguments(messages)
    objects = [value for value in arguments_of(read) if isinstance(value, dict)]
    if not objects or read == messages:
        return messages, writer.write(messages, **variables)
    try:
        text = writer.write(read, **variables)
        if not any(str(value) in text for value in objects if value):
            return read, text
    except TemplateFailure:
        pass
    return messages, writer.write(messages, **variables)


def _check_written(
    row: Row, messages: list[dict[str, Any]], text: str, writer: ChatWriter, variables: Mapping[str, Any]
) -> bool:
    """Refuse what a row carries and the template leaves out: the text is the same without it.

    Returns:
        Whether the name of a tool's message is left out, as many templates do: calls and answers are in order.
    """

    def same(others: list[dict[str, Any]], **others_variables: Any) -> bool:
        try:
            return writer.write(others, **{**variables, **others_variables}) == text
        except TemplateFailure:
            return False

    if row.tools and same(messages, tools=None):
        raise _unwritten(row, "tools", None, "the chat template, which does not write them")
    for key in row.template_options or {}:
        if same(messages, **{key: None}) and key not in writer.template.source:
            raise _unwritten(row, key, None, "the chat template, which knows no such option")
    for n, turn in enumerate(row.turns):
        if not turn.extras:
            continue
        _check_parts(row, turn, n + 1)
        for key in _needed(turn.role, turn.counted, turn.extras):
            without = {name: value for name, value in messages[n].items() if name not in _aliases(key)}
            if same([*messages[:n], without, *messages[n + 1 :]]):
                raise _unwritten(row, key, n + 1, "the chat template, which does not write it there")
    return any(_is_named_tool(turn) and same(_without_name(messages, n)) for n, turn in enumerate(row.turns))


def _without_name(messages: list[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    unnamed = {key: value for key, value in messages[n].items() if key != "name"}
    return [*messages[:n], unnamed, *messages[n + 1 :]]


def _needed(role: str, counted: bool, extras: Mapping[str, Any]) -> list[str]:
    """Keys whose loss would change what is trained. An earlier thought that is not counted may go, as templates do."""
    keys = [key for key in CALLS if extras.get(key)]
    if role == "assistant" and counted:
        keys += [key for key in THOUGHTS if extras.get(key)][:1]
    if role != "tool" and extras.get("name"):
        keys.append("name")
    return keys


def _aliases(key: str) -> tuple[str, ...]:
    return THOUGHTS if key in THOUGHTS else (key,)


def _given(row: Row) -> str:
    return f"the chat template of the tokenizer, row {row.source_row + 1}"


def _unwritten(row: Row, key: str, message: int | None, template: str) -> DataError:
    where = f"message {message} of row {row.source_row + 1}" if message else f"row {row.source_row + 1}"
    return DataError(
        given=f"{where}, with {key}",
        found=template,
        instead="a tokenizer whose template writes it, or rows without it"
        + (
            " (a thought of an earlier answer: weight 0 on that message, or a row for each answer)"
            if key in THOUGHTS
            else ""
        ),
    )
