"""A tokenizer's chat template with what it is handed: messages as it takes them, names of tokens, tokens that stop."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from loratlas.data.chat.template_sandbox import Template, TemplateFailure, compiled
from loratlas.data.rows import Row, Turn
from loratlas.errors import DataError, printable
from loratlas.files import read_json

THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Names under which a message carries its thought, as transformers knows them."""

CALLS = ("tool_calls", "function_call")
"""Names under which a message carries what the model calls."""

_PROBE = "Vq7Zx"
_BRACKETS = r"<[^<>\s]{1,60}>|\[/?[A-Z_]{2,30}\]"


class ChatWriter:
    """One chat template of one tokenizer. Make it with `chat_writer`.

    Args:
        tokenizer: its special tokens are handed to the template, and say where a turn may stop.
        source: the template.

    Raises:
        TemplateFailure: the template is none.
    """

    def __init__(self, tokenizer: Any, source: str) -> None:
        self.template: Template = compiled(source)
        self.names: dict[str, Any] = dict(tokenizer.special_tokens_map)
        added = [token for token in tokenizer.added_tokens_decoder.values() if token.content.strip()]
        self.specials = frozenset({*tokenizer.all_special_tokens, *(t.content for t in added if t.special)})
        tokens = sorted({*self.specials, *(token.content for token in added)}, key=len, reverse=True)
        self.tokens = re.compile("|".join(map(re.escape, tokens)) or "(?!)")
        self.atoms = re.compile("|".join([*map(re.escape, tokens), _BRACKETS]))
        self.stops = frozenset(stop_tokens(tokenizer))
        self.turn_ends: dict[Any, Any] = {}
        """Filled by `loratlas.data.chat.turn_stops`: what ends a turn in conversations of some roles."""
        self.patterns: dict[Any, Any] = {}
        """Filled by `loratlas.data.chat.answer_spans`: what is written around the contents of some roles."""
        self._takes: dict[str, bool] = {}

    def write(self, messages: Sequence[Mapping[str, Any]], *, ask: bool = False, **variables: Any) -> str:
        """The text of a conversation; see `loratlas.data.chat.template_sandbox.Template.render`."""
        return self.template.render([_plain(m) for m in messages], ask=ask, **{**self.names, **variables})

    def write_marked(
        self, messages: Sequence[Mapping[str, Any]], **variables: Any
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text, and what of it the template itself says that the model writes."""
        return self.template.render_marked([_plain(m) for m in messages], **{**self.names, **variables})

    def messages(self, row: Row) -> list[dict[str, Any]]:
        """The messages of a row in the form that this template takes: content as a text, or in parts."""
        return [self._message(turn) for turn in row.turns]

    def _message(self, turn: Turn) -> dict[str, Any]:
        message = turn.message()
        content = message["content"]
        if isinstance(content, str) and not self.takes("text") and self.takes("parts"):
            message["content"] = [{"type": "text", "text": content}]
        elif isinstance(content, list) and not self.takes("parts") and self.takes("text"):
            message["content"] = turn.content
        return message

    def takes(self, form: str) -> bool:
        """Whether the template writes a content that is a ``text``, or one in ``parts``."""
        if form not in self._takes:
            content = _PROBE if form == "text" else [{"type": "text", "text": _PROBE}]
            self._takes[form] = self._writes(content)
        return self._takes[form]

    def _writes(self, content: Any) -> bool:
        for roles in (("user",), ("user", "assistant"), ("system", "user")):
            try:
                text = self.write([{"role": role, "content": content} for role in roles])
            except TemplateFailure:
                continue
            if _PROBE in text and "'text'" not in text and '"text"' not in text:
                return True
        return False

    def line(self) -> str:
        """The line of the template that writes an answer, as far as its words show it."""
        lines = self.template.source.splitlines() or [""]
        near = [n for n, line in enumerate(lines) if "content" in line] or [0]
        after = [n for n in near if any("assistant" in line for line in lines[max(0, n - 3) : n + 1])]
        number = (after or near)[-1]
        return f"line {number + 1} of the template: {printable(lines[number].strip(), limit=120)}"


_WRITERS: WeakKeyDictionary[Any, dict[str, ChatWriter]] = WeakKeyDictionary()


def chat_writer(tokenizer: Any, row: Row) -> ChatWriter:
    """The writer of a tokenizer's template for a row; a tokenizer may have another template for rows with tools.

    Raises:
        DataError: the template cannot be read.
    """
    try:
        source: str = tokenizer.get_chat_template(tools=list(row.tools) or None)
    except ValueError as error:
        raise DataError(
            given="the chat template of the tokenizer",
            found=printable(" ".join(str(error).split())),
            instead="a tokenizer with one chat template, or one of them named 'default'",
        ) from error
    known = _WRITERS.setdefault(tokenizer, {})
    key = "\0".join([source, *map(str, tokenizer.special_tokens_map.values()), str(len(tokenizer))])
    if key not in known:
        try:
            known[key] = ChatWriter(tokenizer, source)
        except TemplateFailure as error:
            raise DataError(
                given="the chat template of the tokenizer",
                found=f"it cannot be used ({error})",
                instead="a template that is one, or a tokenizer without a template",
            ) from error
    return known[key]


def stop_tokens(tokenizer: Any) -> list[str]:
    """The tokens at which a model stops: the tokenizer's end token, and those that the files beside it name.

    ``generation_config.json`` and ``config.json`` are read where the tokenizer lies in a folder or in the Hub's cache.
    """
    stops = [tokenizer.eos_token] if tokenizer.eos_token else []
    for name in ("generation_config.json", "config.json"):
        named = _named(str(getattr(tokenizer, "name_or_path", "") or ""), name).get("eos_token_id")
        for token in named if isinstance(named, list) else [named]:
            if isinstance(token, int) and not isinstance(token, bool) and 0 <= token < len(tokenizer):
                stops.append(tokenizer.convert_ids_to_tokens(token))
    return list(dict.fromkeys(stops))


def _named(source: str, name: str) -> dict[str, Any]:
    from huggingface_hub import try_to_load_from_cache

    path: Any = Path(source) / name
    if not source:
        return {}
    if not path.is_file():
        try:
            path = try_to_load_from_cache(source, name)
        except ValueError:  # a local path is no name of a repository
            return {}
    try:
        content = read_json(Path(path)) if isinstance(path, (str, Path)) else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """As transformers hands a message over: without what is null, a thought under the names that templates read."""
    kept = {key: value for key, value in message.items() if value is not None}
    thought = next((kept[key] for key in THOUGHTS if key in kept), None)
    return kept if thought is None else {"thinking": thought, **kept, "reasoning_content": thought}


def with_arguments(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the arguments of calls as objects where they are JSON in a text."""
    read = []
    for message in messages:
        calls = message.get("tool_calls")
        calls = [_read_call(call) for call in calls] if isinstance(calls, (list, tuple)) else calls
        read.append(dict(message) if calls is None else {**message, "tool_calls": calls})
    return read


def _read_call(call: Any) -> Any:
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _read_call(call["function"])}
    arguments = call.get("arguments")
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return call
    return {**call, "arguments": value} if isinstance(value, dict) else call


def arguments_of(messages: Iterable[Mapping[str, Any]]) -> list[Any]:
    """The arguments of all calls."""
    arguments = []
    for message in messages:
        for call in message.get("tool_calls") or ():
            function = call.get("function", call) if isinstance(call, Mapping) else {}
            if isinstance(function, Mapping) and "arguments" in function:
                arguments.append(function["arguments"])
    return arguments
