"""Answers in the text of a template that marks them itself, with ``{% generation %}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loratlas.data.chat.answer_spans import Span
from loratlas.data.chat.carried_text import turn_range
from loratlas.data.chat.chat_writer import ChatWriter
from loratlas.data.chat.template_probes import Messages, Unclear
from loratlas.data.rows import Turn


def marked_spans(
    turns: Sequence[Turn], messages: Messages, writer: ChatWriter, variables: Mapping[str, Any]
) -> tuple[str, list[Span]]:
    """The text and the spans that the template marks, without those of turns that are not counted.

    Args:
        turns: of the row.
        messages: the same, as the template takes them.
        writer: the template.
        variables: further variables of it.

    Raises:
        Unclear: the marks leave out words of a counted answer, or those of an uncounted one cannot be identified.
        TemplateFailure: the template refuses the turns.
    """
    text, marks = writer.write_marked(messages, **variables)
    marks = [(start, stop) for start, stop in marks if stop > start]
    for n, turn in enumerate(turns):
        if turn.role != "assistant" or turn.counted:
            continue
        low, high = turn_range(n, messages, text, writer, variables)
        kept = [(start, stop) for start, stop in marks if stop <= low or start > high]
        if len(kept) == len(marks) and turn.content.strip():
            raise Unclear(f"the marks of message {n + 1} cannot be identified")
        marks = kept
    _check_whole(turns, text, marks)
    spans = []
    for start, stop in marks:
        end = len(text[start:stop].rstrip()) + start
        for atom in reversed(list(writer.atoms.finditer(text, start, end))):
            if atom.end() != end or atom[0] not in {*writer.specials, *writer.stops}:
                break
            end = atom.start()
        spans.append(Span(turn=-1, start=start, end=end, stop=stop, marked=True))
    return text, spans


def _check_whole(turns: Sequence[Turn], text: str, marks: Sequence[tuple[int, int]]) -> None:
    """Refuse marks that leave out words of an answer. White space is the template's."""
    marked, at = "".join("".join(text[start:stop].split()) for start, stop in marks), 0
    for n, turn in enumerate(turns):
        words = "".join(turn.content.split())
        if turn.role != "assistant" or not turn.counted or not words:
            continue
        at = marked.find(words, at)
        if at < 0:
            raise Unclear(f"message {n + 1} is written as another text than the row has")
        at += len(words)
