"""Asking a template: other conversations than the one that is read, and what their texts share with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from loratlas.data.chat.chat_writer import ChatWriter
from loratlas.data.chat.template_sandbox import TemplateFailure

Messages: TypeAlias = Sequence[Mapping[str, Any]]

SIGN = "Vq{}7Zx"
"""A word that no row holds; `put_sign` puts it behind a message's last word."""

PLAIN_ANSWERS = ("Vq7Zx", "7wQk2")
"""Two plain answers; they differ in their first and in their last letter."""


class Unclear(Exception):
    """An answer whose characters cannot be identified."""


def put_sign(message: Mapping[str, Any], sign: str) -> dict[str, Any]:
    """The message with a sign behind its last word."""

    def put(text: str) -> str:
        kept = text.rstrip()
        return kept + sign + text[len(kept) :]

    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": put(content)}
    parts = list(content)
    last = max(
        n for n, part in enumerate(parts) if isinstance(part, Mapping) and str(part.get("text", "")).strip()
    )
    parts[last] = {**parts[last], "text": put(parts[last]["text"])}
    return {**message, "content": parts}


def sign_ends(text: str, written: str, signs: Sequence[str]) -> list[int] | None:
    """Where the signs came out, in characters of the text without them; None where the rest is another text."""
    pieces, rest, at, ends = [], written, 0, []
    for sign in signs:
        before, matched, rest = rest.partition(sign)
        if not matched:
            return None
        pieces.append(before)
        at += len(before)
        ends.append(at)
    return ends if "".join([*pieces, rest]) == text else None


def attempt(
    writer: ChatWriter, messages: Messages, variables: Mapping[str, Any], *, ask: bool = False
) -> str | None:
    try:
        return writer.write(messages, ask=ask, **variables)
    except TemplateFailure:
        return None


def with_answer(messages: Messages, n: int, answer: str) -> list[Mapping[str, Any]]:
    content: Any = messages[n].get("content")
    content = [{"type": "text", "text": answer}] if isinstance(content, list) else answer
    return [*messages[:n], {"role": "assistant", "content": content}, *messages[n + 1 :]]


def with_text(message: Mapping[str, Any], text: str) -> dict[str, Any]:
    content: Any = [{"type": "text", "text": text}] if isinstance(message.get("content"), list) else text
    return {"role": message["role"], "content": content}


def shared_start(one: str, other: str) -> int:
    """Characters with which two texts begin alike.

    >>> shared_start("<a> one", "<a> other"), shared_start("same", "same")
    (5, 4)
    """
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def shared_end(one: str, other: str) -> int:
    """Characters with which two texts end alike."""
    return shared_start(one[::-1], other[::-1])


def before_atom(text: str, at: int, writer: ChatWriter) -> int:
    """``at``, or the beginning of the token that it would cut."""
    low = max(0, at - 80)
    for atom in writer.atoms.finditer(text, low, min(len(text), at + 80)):
        if atom.start() < at < atom.end():
            return atom.start()
    return at


def after_atom(text: str, after: int, writer: ChatWriter) -> int:
    """``after`` characters at the end, or fewer: from the end of the token that they would begin in."""
    at = len(text) - after
    for atom in writer.atoms.finditer(text, max(0, at - 80), min(len(text), at + 80)):
        if atom.start() < at < atom.end():
            return len(text) - atom.end()
    return after
