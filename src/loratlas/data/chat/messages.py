"""Conversations as people write them: OpenAI's messages, ShareGPT's turns, Alpaca's history.

A message keeps everything it carries. What says whether the loss counts it (``weight``, ``train``, ``training``,
``loss``) is obeyed here; all else goes to the chat template with the message.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from loratlas.data.records.literals import plain, scalar_text
from loratlas.data.rows import Turn
from loratlas.errors import DataError, printable

ROLES = ("system", "user", "assistant", "tool")

SHARED_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "function_call": "assistant",
}
"""Roles of ShareGPT → ours."""

WEIGHTS = ("weight", "train", "training", "loss")
"""Keys that say whether the loss counts a message: 1 or true, 0 or false."""

CARRIED = (
    "tool_calls",
    "tool_call_id",
    "function_call",
    "name",
    "reasoning_content",
    "reasoning",
    "thinking",
)
"""Keys of a message that chat templates are known to read. Others are handed to the template all the same, and
remarked."""

Fail = Callable[[str, str], DataError]
"""(found, instead) → an error that names source and row."""

SHAPE = "messages as {role, content}, or {from, value}"


def read_messages(value: Any, field: str, fail: Fail, unknown: Counter[str] | None = None) -> list[Turn]:
    """Turns of a list of messages.

    Args:
        value: what stands in the field.
        field: its name, for errors.
        fail: makes an error of the row.
        unknown: counts the keys that are neither read here nor in `CARRIED`.

    Raises:
        DataError: no list, or a message that is none.
    """
    if not isinstance(value, list) or not value:
        raise fail(f"field {field!r} is no list of messages", f"a list of {SHAPE}")
    return [
        _turn(message, f"message {number} of {field!r}", fail, unknown)
        for number, message in enumerate(value, start=1)
    ]


def _turn(message: Any, where: str, fail: Fail, unknown: Counter[str] | None) -> Turn:
    if not isinstance(message, Mapping):
        raise fail(f"{where} is no object", SHAPE)
    shared = "role" not in message and "from" in message
    role_key, content_key = ("from", "value") if shared else ("role", "content")
    role, content = message.get(role_key), message.get(content_key)
    if role is None:
        raise fail(f"{where} has a missing field {role_key!r}", SHAPE)
    known = SHARED_ROLES.get(role, role) if isinstance(role, str) else None
    if known not in ROLES:
        raise fail(f"{where} has the role {printable(str(role))!r}", f"one of {', '.join(ROLES)}")
    extras = {
        key: plain(item)
        for key, item in message.items()
        if key not in (role_key, content_key, *WEIGHTS) and item is not None
    }
    if unknown is not None:
        unknown.update(key for key in extras if key not in CARRIED)
    if role == "function_call":
        extras["tool_calls"], content = [_called(content, where, fail)], ""
    if content is None and not ("tool_calls" in extras or "function_call" in extras):
        raise fail(f"{where} has a missing field {content_key!r}", SHAPE)
    text = _content(content, where, fail)
    if not isinstance(content, str) and (content_key in message or isinstance(content, list)):
        # As it was written: a template may ask whether a content is null, or go through its parts.
        extras |= {"content": plain(content)} if content is None or isinstance(content, list) else {}
    counted = _counted(message, known, where, fail)
    return Turn(role=known, content=text, counted=counted, extras=extras or None)


def _content(content: Any, where: str, fail: Fail) -> str:
    if content is None:
        return ""
    if (text := scalar_text(content)) is not None:
        return text
    if not isinstance(content, list):
        raise fail(f"{where} has a content that is no text", "a text as content, or a list of text parts")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else part
        if not isinstance(text, str):
            kind = printable(str(part.get("type"))) if isinstance(part, Mapping) else type(part).__name__
            raise fail(f"{where} has a part of type {kind!r}", 'parts as {"type": "text", "text": …}')
        texts.append(str(text))
    return "".join(texts)


def _called(content: Any, where: str, fail: Fail) -> dict[str, Any]:
    """The call of a tool that ShareGPT writes as a turn of its own."""
    try:
        call = json.loads(content) if isinstance(content, str) else plain(content)
    except (ValueError, RecursionError):
        call = None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or "arguments" not in call:
        raise fail(
            f"{where} is a function_call that is no call", '{"name": …, "arguments": {…}} as its value'
        )
    return {"type": "function", "function": call}


def _counted(message: Mapping[str, Any], role: str, where: str, fail: Fail) -> bool:
    said = {key: message[key] for key in WEIGHTS if message.get(key) is not None}
    meant: set[bool] = set()
    for key, value in said.items():
        if value is True or value in ("1", "1.0"):
            meant.add(True)
        elif value is False or value in ("0", "0.0"):
            meant.add(False)
        else:
            raise fail(f"{where} has the {key} {printable(str(value))}", "0 or 1, true or false")
    if len(meant) == 2:
        raise fail(f"{where} is to be counted and not, by {' and '.join(said)}", "one of them")
    if True in meant and role != "assistant":
        raise fail(
            f"{where}, of the role {role}, asks to be counted ({', '.join(said)})",
            "that on assistant turns alone (--loss all counts every token)",
        )
    return False not in meant


def read_history(value: Any, fail: Fail) -> list[Turn]:
    """Turns of Alpaca's ``history``: pairs of a question and its answer, each answer counted."""
    turns: list[Turn] = []
    pairs: list[Any] = value if isinstance(value, list) else [None]
    for number, pair in enumerate(pairs, start=1):
        texts = [scalar_text(item) for item in pair] if isinstance(pair, list) else []
        if len(texts) != 2 or None in texts:
            raise fail(f"item {number} of 'history' is no pair of texts", "a list of [question, answer]")
        turns += [Turn(role=role, content=text or "") for role, text in zip(ROLES[1:3], texts, strict=True)]
    return turns


def read_tools(value: Any, fail: Fail) -> tuple[Any, ...]:
    """The tools of a row: a list of objects, or the JSON of one."""
    tools = _parsed(value)
    if tools in (None, ""):
        return ()
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise fail(
            "field 'tools' is no list of tools", "a list of objects, as JSON schema describes functions"
        )
    return tuple(tools)


def read_options(value: Any, fail: Fail) -> dict[str, Any] | None:
    """Further variables for the chat template: an object, or the JSON of one."""
    options = _parsed(value)
    if options in (None, "", {}):
        return None
    if not isinstance(options, dict):
        raise fail(
            "field 'chat_template_kwargs' is no object", '{"name": value}, variables of the chat template'
        )
    return options


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return plain(value)
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        return value
