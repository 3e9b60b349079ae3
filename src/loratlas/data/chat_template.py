"""From turns to text, and which parts of the text are answers.

Where the tokenizer has a chat template, that template writes the text. Where it has none, this one does:

* a system turn: its content and a blank line;
* a user (or tool) turn: its content, a blank line, ``Answer:`` and a line break;
* an assistant turn: its content and the tokenizer's end token.

It costs about five tokens per exchange. A turn of role ``text`` is written as it is, with the end token.

The text is cut where answers begin and end, and each piece is tokenised by itself, so that no token spans the
boundary: what the model sees in training is what it will see when it is asked to go on after a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias, cast

from loratlas.data.rows import Row, Turn
from loratlas.errors import DataError

PLAIN_TEMPLATE = "{system}\n\n{user}\n\nAnswer:\n{assistant}{eos}"
"""The plain template in one line, as reports name it."""

Piece: TypeAlias = tuple[str, bool]
"""A stretch of text and whether it is an answer."""


def template_name(tokenizer: Any, form: str) -> str:
    """What reports say about the template: the tokenizer's own, the plain one, or none for raw text."""
    if form == "text":
        return "none: the text and the end token"
    return "the tokenizer's chat template" if tokenizer.chat_template else f"plain: {PLAIN_TEMPLATE!r}"


def end_token(tokenizer: Any) -> str:
    """The token that ends an answer: eos, else sep, else nothing."""
    return tokenizer.eos_token or tokenizer.sep_token or ""


def render(row: Row, tokenizer: Any) -> list[Piece]:
    """Write a row as text, cut into pieces.

    Args:
        row: the turns.
        tokenizer: its chat template and end token are used.

    Returns:
        Pieces in order; neighbours differ in whether they are answers, and none is empty.

    Raises:
        DataError: the chat template refuses the turns, or its text cannot be cut into answers exactly.
    """
    if len(row.turns) == 1 and row.turns[0].role == "text":
        return _joined([(row.turns[0].content + end_token(tokenizer), True)])
    if tokenizer.chat_template:
        return _joined(_chat(row, tokenizer))
    end = end_token(tokenizer)
    return _joined([_plain(turn, end) for turn in row.turns])


def _plain(turn: Turn, end: str) -> Piece:
    if turn.role == "assistant":
        return turn.content + end, True
    return turn.content + ("\n\n" if turn.role == "system" else "\n\nAnswer:\n"), False


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    joined: list[Piece] = []
    for text, labelled in pieces:
        if joined and joined[-1][1] == labelled:
            joined[-1] = (joined[-1][0] + text, labelled)
        elif text:
            joined.append((text, labelled))
    return joined


def _chat(row: Row, tokenizer: Any) -> list[Piece]:
    messages = [{"role": turn.role, "content": turn.content} for turn in row.turns]
    if _marks_generation(tokenizer):
        return _by_marks(messages, tokenizer, row.source_row)
    return _by_prefixes(messages, tokenizer, row.source_row)


def _marks_generation(tokenizer: Any) -> bool:
    # `{% generation %}` is transformers' own extension of Jinja: the template says what the assistant writes.
    return re.search(r"\{%-?\s*generation\b", tokenizer.get_chat_template()) is not None


def _by_marks(messages: list[dict[str, str]], tokenizer: Any, source_row: int) -> list[Piece]:
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts, spans = render_jinja_template(
            conversations=[messages],
            chat_template=tokenizer.get_chat_template(),
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    except Exception as error:  # templates raise what they like
        raise _refused(error, source_row) from error
    text: str = texts[0]
    pieces: list[Piece] = []
    at = 0
    for start, end in cast(list[tuple[int, int]], spans[0]):
        pieces += [(text[at:start], False), (text[start:end], True)]
        at = end
    return [*pieces, (text[at:], False)]


def _by_prefixes(messages: list[dict[str, str]], tokenizer: Any, source_row: int) -> list[Piece]:
    """Find the answers by writing the conversation up to each of them: that text must begin the whole.

    An answer begins where the prompt that asks for it ends (or, where a template asks with more than it
    keeps, at the answer's own text), and ends behind the first special token after it: there a model stops.
    A line break that the template writes after that token is not the model's to write.
    """

    def write(upto: int, *, ask: bool) -> str:
        try:
            return tokenizer.apply_chat_template(messages[:upto], tokenize=False, add_generation_prompt=ask)
        except Exception as error:  # templates raise what they like
            raise _refused(error, source_row) from error

    def unclear(index: int) -> DataError:
        return DataError(
            given=f"the chat template of the tokenizer, row {source_row + 1}",
            found=f"message {index + 1} cannot be found exactly in the text that the template writes",
            instead="a template that marks answers with {% generation %}, or a tokenizer without a template",
        )

    whole = write(len(messages), ask=False)
    specials = _special_tokens(tokenizer)
    pieces: list[Piece] = []
    at = 0
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        answer = message["content"].strip()
        asked = write(index, ask=True) if index else ""
        if asked and whole.startswith(asked):
            start = len(asked)
        else:
            before = write(index, ask=False) if index else ""
            start = whole.find(answer, len(before)) if answer and whole.startswith(before) else -1
        if start < at:
            raise unclear(index)
        found = whole.find(answer, start)
        if found < 0:
            raise unclear(index)
        behind = found + len(answer)
        stops = [place + len(token) for token in specials if (place := whole.find(token, behind)) >= 0]
        upto = whole if index + 1 == len(messages) else write(index + 1, ask=False)
        if whole.startswith(upto):
            stops.append(len(upto))
        if not stops:
            raise unclear(index)
        pieces += [(whole[at:start], False), (whole[start : min(stops)], True)]
        at = min(stops)
    return [*pieces, (whole[at:], False)]


@lru_cache(maxsize=8)
def _special_tokens(tokenizer: Any) -> tuple[str, ...]:
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(dict.fromkeys([*tokenizer.all_special_tokens, *added]))


def _refused(error: Exception, source_row: int) -> DataError:
    words = " ".join(str(error).split()) or type(error).__name__
    return DataError(
        given=f"the chat template of the tokenizer, row {source_row + 1}",
        found=f"the template refuses these turns ({words})",
        instead="turns as the template takes them (often: no system turn, user and assistant in turn)",
    )
