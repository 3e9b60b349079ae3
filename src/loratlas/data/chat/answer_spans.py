"""Where the answers are in the text that a chat template writes, and what ends each of them.

Ids are those of the whole conversation, so nothing is cut; what is looked for are the characters that the loss counts.

* **The answer** (here). A word that no row holds is put behind its last word, and the conversation is written a
  second time: where that word comes out, the answer ends, whatever letters it shares with the template. Without it the
  two texts must be one, and before it the answer must stand as the row has it (white space may differ, as templates
  trim). For most rows a cheaper way says the same: the text is compared with what the template writes of these roles.
* **A thought or a call** that comes with the content (`carried_text`): the text is compared with that of the same
  conversation with a plain answer; what differs is the model's to write, from where the template asks for it.
* **The stop** (`turn_stops`): what the template writes behind an answer before the turn is over, up to the token at
  which a model stops, or up to the first of its tokens and those that follow at once. Where a turn has none, the
  token that begins the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any

from loratlas.data.chat.carried_text import carried_span, carries
from loratlas.data.chat.chat_writer import CALLS, THOUGHTS, ChatWriter
from loratlas.data.chat.template_probes import (
    SIGN,
    Messages,
    Unclear,
    attempt,
    put_sign,
    sign_ends,
    with_text,
)
from loratlas.data.chat.turn_stops import turn_end
from loratlas.data.rows import Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Characters of one answer, ``start`` to ``stop``; behind ``end`` stands only what stops it.

    Args:
        turn: index of the message.
        start: first character of what the row says.
        end: behind the last of it.
        stop: behind what ends the turn.
        respaced: the template writes the answer with other white space inside it.
        marked: the template says itself that these characters are an answer.
    """

    turn: int
    start: int
    end: int
    stop: int
    respaced: bool = False
    marked: bool = False


def answer_spans(
    turns: Sequence[Turn], messages: Messages, text: str, writer: ChatWriter, variables: Mapping[str, Any]
) -> list[Span]:
    """The span of every counted answer.

    Args:
        turns: of the row.
        messages: the same, as the template takes them.
        text: what the template writes of them.
        writer: the template.
        variables: further variables of it.

    Raises:
        Unclear: an answer that is not written as it is, or whose end cannot be identified.
        TemplateFailure: the template refuses the conversation up to some turn.
    """
    counted = [n for n, turn in enumerate(turns) if turn.role == "assistant" and turn.counted]
    spoken = [n for n in counted if turns[n].content.strip()]
    simple = not variables and not any(turn.extras for turn in turns)
    end_of = _ends_by_pattern(turns, messages, text, writer) if simple else None
    signs = {}
    if end_of is None:
        signs = _signs(text, counted)
        signed = [put_sign(m, signs[n]) if n in spoken else m for n, m in enumerate(messages)]
        written = writer.write(signed, **variables) if spoken else text
        ends = sign_ends(text, written, [signs[n] for n in spoken])
        end_of = dict(zip(spoken, ends, strict=True)) if ends is not None else {}
    spans = []
    for n in counted:
        if n not in end_of and n in spoken:
            end_of[n] = _end_alone(n, messages, text, writer, variables, signs[n])
        start, end, respaced = _bounds(n, turns[n], text, end_of.get(n))
        if carries(turns[n], *CALLS, *THOUGHTS) or end < 0:
            start, end = carried_span(n, turns[n], messages, text, writer, variables, (start, end))
            if not (turns[n].content.strip() or carries(turns[n], *CALLS, *THOUGHTS)):
                start = end  # an answer of nothing: only its stop
        around = turn_end(n, turns, messages, text, writer, variables, simple=simple, at=(start, end))
        start -= len(around.gap)
        trailing = turns[n].content[len(turns[n].content.rstrip()) :]
        for stop in (trailing + around.stop, around.stop):
            if text.startswith(stop, end):
                break
        else:
            raise Unclear(f"the end of message {n + 1} cannot be identified")
        spans.append(Span(turn=n, start=start, end=end, stop=end + len(stop), respaced=respaced))
    if any(before.stop > after.start for before, after in pairwise(spans)):
        raise Unclear("its answers are not written in their order")
    return spans


def _ends_by_pattern(
    turns: Sequence[Turn], messages: Messages, text: str, writer: ChatWriter
) -> dict[int, int] | None:
    """Ends of the contents of a text that is what the template writes of the same roles with these contents put in.

    What it writes of some roles is learned once, from signs as contents. A text that differs in anything (a thought
    that is rewritten, a word that the template looks for) is not read this way: then None.
    """
    key = tuple((turn.role, isinstance(m["content"], list)) for turn, m in zip(turns, messages, strict=True))
    if key not in writer.patterns:
        signs = [SIGN.format(f"{n}p") for n in range(len(turns))]
        pieces, rest = (
            [],
            attempt(writer, [with_text(m, s) for m, s in zip(messages, signs, strict=True)], {}) or "",
        )
        for sign in signs:
            before, matched, rest = rest.partition(sign)
            pieces.append(before if matched and rest.count(sign) == 0 else None)
        writer.patterns[key] = None if None in pieces else [*pieces, rest]
    pieces = writer.patterns[key]
    if pieces is None:
        return None
    for contents in ([turn.content for turn in turns], [turn.content.strip() for turn in turns]):
        if text != "".join(part for pair in zip(pieces, [*contents, ""], strict=True) for part in pair):
            continue
        ends, at = {}, 0
        for n, (piece, content) in enumerate(zip(pieces, contents, strict=False)):
            at += len(piece) + len(content)
            if content.strip():
                ends[n] = at - len(content) + len(content.rstrip())
        return ends
    return None


def _signs(text: str, turns: Sequence[int]) -> dict[int, str]:
    """A sign for each turn that stands nowhere in the text."""
    letters = next("k" * size for size in count() if f"Vq{'k' * size}" not in text)
    return {n: SIGN.format(f"{letters}{n}q") for n in turns}


def _end_alone(
    n: int, messages: Messages, text: str, writer: ChatWriter, variables: Mapping[str, Any], sign: str
) -> int:
    """Where one sign comes out, the other answers being as they are."""
    written = writer.write([put_sign(m, sign) if k == n else m for k, m in enumerate(messages)], **variables)
    ends = sign_ends(text, written, [sign])
    if ends is None:
        raise Unclear(f"message {n + 1} cannot be found exactly in the text that the template writes")
    return ends[0]


def _bounds(n: int, turn: Turn, text: str, end: int | None) -> tuple[int, int, bool]:
    """Start and end of the content that ends at ``end``, and whether its white space is another."""
    if end is None:
        return -1, -1, False
    for content in (turn.content.rstrip(), turn.content.strip()):
        if text.endswith(content, 0, end):
            return end - len(content), end, False
    at = end
    for letter in reversed("".join(turn.content.split())):
        at -= 1
        while at >= 0 and text[at] != letter and text[at].isspace():
            at -= 1
        if at < 0 or text[at] != letter:
            raise Unclear(f"message {n + 1} is written as another text than the row has")
    return at, end, True
