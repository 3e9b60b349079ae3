"""Jinja with bounds: what a template computes is counted, and what would make something large is refused beforehand."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from loratlas.errors import printable

LARGEST = 64_000_000
"""Characters of a text, items of a list, that a template may make."""
_WIDEST = 1_000_000  # a number that says how wide, how many or how often
_STEPS = 1_000_000  # rounds of loops and calls of macros in one rendering
_SECONDS = 0.7  # of the processor, in one rendering
_WIDE = re.compile(r"\d{6,}|%[^a-zA-Z]*\*|\{[^{}]*\{")  # also a width that is handed over: %*d, {:{}}
_WIDENING = frozenset(
    {"do_center", "do_indent", "do_wordwrap", "do_batch", "do_slice", "sync_do_slice", "do_round", "tojson"}
)
"""Filters that take a width or a count; others are handed data, which may be any number."""


@lru_cache(maxsize=1)
def _transformers() -> Any:
    """The environment in which transformers renders templates, for its filters, globals and tags."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template("").environment


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """transformers' environment for chat templates, with its filters, globals and tags, and with bounds."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self) -> None:
        theirs = _transformers()
        # Nothing is computed while compiling: a folded constant would escape the bounds.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[type(extension) for extension in theirs.extensions.values()],
            finalize=_printed,
        )
        self.globals.update(theirs.globals)
        self.globals.pop("lipsum", None)
        self.filters.update({name: _checked(filter) for name, filter in theirs.filters.items()})
        self.tests.update(theirs.tests)
        self.begin()

    def begin(self) -> None:
        """Start counting anew."""
        self.steps, self.until = 0, time.thread_time() + _SECONDS

    def tick(self) -> str:
        """One round of a loop."""
        self.steps += 1
        if self.steps > _STEPS:
            raise SecurityError(f"it runs for more than {_STEPS:,} rounds of its loops")
        if not self.steps % 64 and time.thread_time() > self.until:
            raise SecurityError(f"it takes more than {_SECONDS:g} s")
        return ""

    def joined(self, *texts: Any) -> str:
        """What ``~`` makes."""
        written = [str(text) for text in texts]
        _room(sum(map(len, written)))
        return "".join(written)

    def made(self, value: Any) -> Any:
        """A list or a dict that the template made."""
        _room(_size(value))
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            _number(left, right)
            if isinstance(right, int) and abs(right) > 1000:
                raise SecurityError(f"a power of {right}")
        elif operator == "*":
            if isinstance(left, int) and isinstance(right, int):
                _number(left, right)
            else:
                _room(_times(left, right))
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            _room(len(left) + len(right))
        elif operator == "%":
            _format(left)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if owner is self:
            return obj(*args)
        if isinstance(owner, str):
            args = _grown(name, owner, args)
            _counts((*args, *kwargs.values()))
        elif name == "strftime_now" and args:
            _format(args[0])
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Any:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _format(value.__self__)
        return wrapped

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = _counting(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree


def _counting(tree: nodes.Template) -> nodes.Template:
    """The tree with a count in every loop and macro, and checks where something is put together."""

    def ask(name: str, args: list[nodes.Expr], line: int) -> nodes.Call:
        asked = nodes.Call(nodes.EnvironmentAttribute(name), args, [], None, None)
        for node in (asked, asked.node):
            node.set_lineno(line)
        return asked

    def walk(node: nodes.Node) -> nodes.Node:
        for name, value in node.iter_fields():
            if isinstance(value, nodes.Node):
                setattr(node, name, walk(value))
            elif isinstance(value, list):
                setattr(node, name, [walk(item) if isinstance(item, nodes.Node) else item for item in value])
        if isinstance(node, (nodes.For, nodes.Macro, nodes.CallBlock)):
            node.body.insert(0, nodes.ExprStmt(ask("tick", [], node.lineno), lineno=node.lineno))
        if isinstance(node, nodes.Concat):
            return ask("joined", list(node.nodes), node.lineno)
        if isinstance(node, (nodes.List, nodes.Dict)) or (
            isinstance(node, nodes.Tuple) and node.ctx == "load"
        ):
            return ask("made", [node], node.lineno)
        return node

    walk(tree)
    return tree


def _room(size: float) -> None:
    if size > LARGEST:
        raise SecurityError(f"it makes something of {size:,.0f} characters or items; {LARGEST:,} are allowed")


def _size(value: Any, known: dict[int, int] | None = None) -> int:
    """Characters and items of a value, counted as often as they would be written."""
    if isinstance(value, str):
        return len(value)
    if not isinstance(value, (list, tuple, Mapping)):
        return 1
    known = {} if known is None else known
    if id(value) not in known:  # lists that hold one list many times are walked once
        items = [*value, *value.values()] if isinstance(value, Mapping) else value
        known[id(value)] = 1 + sum(_size(item, known) for item in items)
    return known[id(value)]


def _printed(value: Any) -> Any:
    if isinstance(value, (list, tuple, Mapping)):
        _room(_size(value))
    return value


def _number(*values: Any) -> None:
    if any(isinstance(value, int) and value.bit_length() > 4096 for value in values):
        raise SecurityError("a number of more than 4,096 bits")


def _times(left: Any, right: Any) -> float:
    what, often = (left, right) if hasattr(left, "__len__") else (right, left)
    return len(what) * max(0, often) if hasattr(what, "__len__") and isinstance(often, int) else 0


def _counts(values: tuple[Any, ...]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > _WIDEST:
            raise SecurityError(f"a width or count of {printable(str(value), limit=30)}")


def _format(text: Any) -> None:
    """Refuse a format that fills up to a width of its own choice."""
    if isinstance(text, str) and _WIDE.search(text):
        raise SecurityError(f"a width of more than 99,999 in {printable(text, limit=40)}")


def _grown(name: str, text: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Check what a method of a text would make; arguments that can be read once only come back as a list."""
    if name == "join" and args:
        items = list(args[0]) if not isinstance(args[0], str) else args[0]
        _room(_size(items) + len(text) * len(items))
        return (items, *args[1:])
    if name == "replace" and len(args) > 1 and isinstance(args[0], str) and isinstance(args[1], str):
        _room(len(text) + text.count(args[0]) * len(args[1]))
    return args


def _checked(filter: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that checks what it is given. What Jinja hands over besides, marked on the function, stays."""
    passes = getattr(filter, "jinja_pass_arg", None)

    name = filter.__name__

    def bounded(*args: Any, **kwargs: Any) -> Any:
        value, *options = args[1:] if passes else args
        options = (*options, *kwargs.values())
        _printed(value)
        if name in _WIDENING:
            _counts(options)
        if name == "do_format":
            _format(value)
        elif name == "do_replace" and isinstance(value, str):
            _grown("replace", value, options)
        elif name == "do_indent":
            width = max(
                (len(n) if isinstance(n, str) else n for n in options if isinstance(n, (str, int))), default=4
            )
            _room(len(value) + value.count("\n") * width if isinstance(value, str) else 0)
        elif name in ("do_join", "do_wordwrap"):
            value = value if isinstance(value, (str, list, tuple)) else list(value)
            _room(
                _size(value)
                + len(value) * max((len(text) for text in options if isinstance(text, str)), default=0)
            )
            args = (args[0], value, *args[2:]) if passes else (value, *args[1:])
        return filter(*args, **kwargs)

    if passes:
        bounded.jinja_pass_arg = passes  # pyright: ignore[reportFunctionMemberAccess]
    bounded.__name__ = name
    return bounded
