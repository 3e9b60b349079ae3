"""What a message says besides its content, a thought or a call: what a plain answer in its stead changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loratlas.data.chat.chat_writer import CALLS, ChatWriter
from loratlas.data.chat.template_probes import (
    PLAIN_ANSWERS,
    SIGN,
    Messages,
    Unclear,
    after_atom,
    attempt,
    before_atom,
    put_sign,
    shared_end,
    shared_start,
    with_answer,
)
from loratlas.data.rows import Turn


def carries(turn: Turn, *keys: str) -> bool:
    """Whether a message carries something under one of the keys."""
    return any((turn.extras or {}).get(key) for key in keys)


def carried_span(
    n: int,
    turn: Turn,
    messages: Messages,
    text: str,
    writer: ChatWriter,
    variables: Mapping[str, Any],
    content: tuple[int, int],
) -> tuple[int, int]:
    """Start and end of all that a message says: its thought, its content and its calls, or nothing."""
    start, end = content
    plain = [attempt(writer, with_answer(messages, n, answer), variables) for answer in PLAIN_ANSWERS]
    low = min((shared_start(text, other) for other in plain if other is not None), default=None)
    asked = attempt(writer, messages[:n], variables, ask=True) if n else None
    if asked is not None and text.startswith(asked) and (low is None or len(asked) <= low):
        low = len(asked)
    if low is None:
        raise Unclear(f"the beginning of message {n + 1} cannot be identified")
    low = before_atom(text, low, writer)
    start = low if start < 0 else min(start, low)
    if carries(turn, *CALLS) or end < 0:
        end = _last(n, messages, text, writer, variables, plain)
    if n + 1 < len(messages) and _follows(n + 1, messages, writer, variables) < end:
        raise Unclear(f"messages {n + 1} and {n + 2} are written as one turn")
    return start, max(end, start)


def _last(
    n: int,
    messages: Messages,
    text: str,
    writer: ChatWriter,
    variables: Mapping[str, Any],
    plain: Sequence[str | None],
) -> int:
    """Where a message without words of its own at its end is over: the text of a plain answer goes on as it does."""
    after = _common_end(text, plain)
    if after is not None:
        return len(text) - after_atom(text, after, writer)
    upto = attempt(writer, messages[: n + 1], variables)
    short = [
        attempt(writer, with_answer(messages[: n + 1], n, answer), variables) for answer in PLAIN_ANSWERS
    ]
    if upto is not None and text.startswith(upto):
        after = _common_end(upto, short)
        if after is None:
            after = min((shared_end(upto, other) for other in short if other is not None), default=0)
        return len(upto) - after_atom(upto, after, writer)
    raise Unclear(f"the end of message {n + 1} cannot be identified")


def turn_range(
    n: int, messages: Messages, text: str, writer: ChatWriter, variables: Mapping[str, Any]
) -> tuple[int, int]:
    """Characters that turn ``n`` says and no plain answer in its stead does.

    Raises:
        Unclear: other characters of the conversation depend on the turn.
    """
    plain = [attempt(writer, with_answer(messages, n, answer), variables) for answer in PLAIN_ANSWERS]
    after = _common_end(text, plain)
    if after is None:
        raise Unclear(f"the end of message {n + 1} cannot be identified")
    low = min(shared_start(text, other or "") for other in plain)
    return before_atom(text, low, writer), len(text) - after


def _common_end(text: str, plain: Sequence[str | None]) -> int | None:
    """Characters at the end that texts share, where just before them the plain answers stand; else None."""
    if any(other is None for other in plain):
        return None
    after = min(shared_end(text, other or "") for other in plain)
    stands = (
        (other or "").endswith(answer, 0, len(other or "") - after)
        for other, answer in zip(plain, PLAIN_ANSWERS, strict=True)
    )
    return after if all(stands) else None


def _follows(n: int, messages: Messages, writer: ChatWriter, variables: Mapping[str, Any]) -> int:
    """Where the content of message ``n`` ends in the text; beyond every text where it does not come out."""
    sign = SIGN.format("n")
    signed = attempt(writer, _with_sign(messages, n, sign), variables)
    index = -1 if signed is None else signed.find(sign)
    return index if index >= 0 else 1 << 62


def _with_sign(messages: Messages, n: int, sign: str) -> list[Mapping[str, Any]]:
    content = messages[n].get("content")
    return [
        (put_sign(m, sign) if content else {**m, "content": sign}) if k == n else m
        for k, m in enumerate(messages)
    ]
