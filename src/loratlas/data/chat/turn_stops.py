"""What ends an answer: the text behind it that the model writes itself in order to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loratlas.data.chat.chat_writer import ChatWriter
from loratlas.data.chat.template_probes import (
    PLAIN_ANSWERS,
    SIGN,
    Messages,
    Unclear,
    attempt,
    before_atom,
    shared_start,
    with_answer,
    with_text,
)
from loratlas.data.rows import Turn

PAIRS = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»", "(": ")", "[": "]", "{": "}"}
"""What encloses a text: opening and closing mark."""


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """What surrounds an answer: white space that is written between the request for it and it, and what stops it."""

    gap: str
    stop: str


def turn_end(
    n: int,
    turns: Sequence[Turn],
    messages: Messages,
    text: str,
    writer: ChatWriter,
    variables: Mapping[str, Any],
    *,
    simple: bool,
    at: tuple[int, int],
) -> TurnEnd:
    """What surrounds answer ``n``, learned once from short words in the same roles where a row holds only texts."""
    start, end = at
    if simple:
        key = (tuple(turn.role for turn in turns), n, isinstance(messages[n].get("content"), list))
        if key not in writer.turn_ends:
            short = [with_text(m, f"w{k}") for k, m in enumerate(messages)]
            sign = SIGN.format("h")
            short[n] = with_text(messages[n], sign)
            whole = attempt(writer, short, variables)
            if whole is None or whole.count(sign) != 1:
                writer.turn_ends[key] = None
            else:
                index = whole.index(sign)
                spot = (index, index + len(sign))
                writer.turn_ends[key] = _learn(n, short, whole, spot, writer, variables, sign)
        known: TurnEnd | None = writer.turn_ends[key]
        trailing = turns[n].content[len(turns[n].content.rstrip()) :]
        if known is not None and any(text.startswith(s + known.stop, end) for s in (trailing, "")):
            return known if text.endswith(known.gap, 0, start) else TurnEnd("", known.stop)
    sign = SIGN.format("h")
    return _learn(n, messages, text, at, writer, variables, None)


def _learn(
    n: int,
    messages: Messages,
    text: str,
    at: tuple[int, int],
    writer: ChatWriter,
    variables: Mapping[str, Any],
    sign: str | None,
) -> TurnEnd:
    start, end = at
    asked = attempt(writer, messages[:n], variables, ask=True) if n else None
    gap = text[len(asked) : start] if asked is not None and text.startswith(asked) else ""
    after = text[end:]
    opening = text[start - 1 : start]
    if (asked is None or not asked.endswith(opening) or gap) and PAIRS.get(opening) == after[:1]:
        raise Unclear(
            f"the template writes message {n + 1} between {opening} and {after[:1]}, and the request for it ends "
            f"before {opening}: whether the model writes that itself cannot be identified"
        )
    last = n + 1 == len(messages)
    upto = text if last else attempt(writer, messages[: n + 1], variables)
    if upto is None:
        raise Unclear(f"the end of message {n + 1} cannot be identified: the template refuses to end there")
    if last:
        own = after
    elif text.startswith(upto) and len(upto) >= end:
        own = upto[end:]
    elif sign is not None and sign in upto:
        own = upto.rpartition(sign)[2]
    else:
        own = _own(n, messages, writer, variables)
    other = after
    if last:
        follow = attempt(writer, [*messages, with_text({**messages[n], "role": "user"}, "w")], variables)
        if follow is not None and follow.startswith(text[:end]):
            other = follow[end:]
        elif follow is not None and sign is not None and sign in follow:
            other = follow.rpartition(sign)[2]
    return TurnEnd(gap if gap.isspace() else "", _stop(own, after, other, text[:end], writer))


def _own(n: int, messages: Messages, writer: ChatWriter, variables: Mapping[str, Any]) -> str:
    """What the template writes behind a turn when that is the last one."""
    plain = attempt(writer, with_answer(messages[: n + 1], n, PLAIN_ANSWERS[0]), variables)
    if plain is None or plain.count(PLAIN_ANSWERS[0]) != 1:
        raise Unclear(f"the end of message {n + 1} cannot be identified")
    return plain.rpartition(PLAIN_ANSWERS[0])[2]


def _stop(own: str, after: str, other: str, before: str, writer: ChatWriter) -> str:
    """What stops an answer.

    Args:
        own: what stands behind it when the conversation ends there.
        after: what stands behind it in this conversation.
        other: what stands behind it when another turn follows.
        before: the text up to the end of the answer.
    """
    tail = after[: _shared(own, other, writer)]
    ends = _run(tail, writer)
    if ends is not None:
        return tail[:ends]
    closed = list(writer.tokens.finditer(before[-80:]))
    if closed and closed[-1].end() == len(before[-80:]) and closed[-1][0] in writer.specials and not tail:
        return ""  # the answer's own text ends with a token at which a model stops (a call)
    following = after[len(tail) :]
    space = len(following) - len(following.lstrip())
    atom = writer.tokens.match(following, space) or (
        writer.atoms.match(following, space) if not tail and own.startswith(following[: space + 1]) else None
    )
    return tail + following[: atom.end()] if atom and not tail.strip() else tail


def _run(tail: str, writer: ChatWriter) -> int | None:
    """Where the first run of tokens ends: behind one at which a model stops, else behind the last that adjoins."""
    tokens = list(writer.tokens.finditer(tail))
    if not tokens:
        return None
    end = None
    for n, token in enumerate(tokens):
        if n and tail[tokens[n - 1].end() : token.start()].strip():
            break
        if token[0] in writer.stops:
            return token.end()
        if end is None or token.start() == end:
            end = token.end()
    return end


def _shared(own: str, other: str, writer: ChatWriter) -> int:
    """Characters that two texts begin with, no token and no word cut."""
    size = shared_start(own, other)
    if size == len(own):
        return size
    size = min(before_atom(own, size, writer), before_atom(other, size, writer))
    while (
        0 < size < len(own)
        and own[size - 1].isalnum()
        and (own[size].isalnum() or other[size : size + 1].isalnum())
    ):
        size -= 1
    return size
