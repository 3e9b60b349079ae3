"""A chat template as a bounded program.

A template is a stranger's code. transformers' sandbox keeps it from the machine, not from running for ever or from
filling the memory, so every template is compiled with the same filters, globals and tags and with bounds
(`jinja_bounds`): loops and macros count their steps, and what would make something large of something small is
refused beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError

from loratlas.data.chat.jinja_bounds import LARGEST, BoundedEnvironment
from loratlas.errors import printable

LARGEST_SOURCE = 1_000_000
"""Characters of a template."""


class TemplateFailure(Exception):
    """A template that could not be compiled or did not end well.

    Args:
        words: what it said, safe to print.
        line: of the template, from 1; None where that is unknown.
        text: of that line, safe to print.
    """

    def __init__(self, words: str, line: int | None = None, text: str = "") -> None:
        super().__init__(words)
        self.words = words
        self.line = line
        self.text = text

    def __str__(self) -> str:
        return f"{self.words}; {self.where}" if self.line else self.words

    @property
    def where(self) -> str:
        """The line, as errors name it."""
        return f"line {self.line} of the template: {self.text}" if self.line else "the template"


class Template:
    """A compiled chat template.

    Args:
        source: its text.

    Raises:
        TemplateFailure: not a template, or too long.

    >>> template = Template("{% for m in messages %}{{ m.role }}: {{ m.content }}\\n{% endfor %}")
    >>> template.render([{"role": "user", "content": "Hi"}])
    'user: Hi\\n'
    >>> Template("{{ 'x' * 10 ** 10 }}").render([])
    Traceback (most recent call last):
    ...
    loratlas.data.chat.template_sandbox.TemplateFailure: it makes something of 10,000,000,000 characters or items; ...
    """

    def __init__(self, source: str) -> None:
        self.source = source
        if len(source) > LARGEST_SOURCE:
            raise TemplateFailure(f"a template of {len(source):,} characters; {LARGEST_SOURCE:,} are read")
        self._environment = BoundedEnvironment()
        try:
            self.tree = self._environment.parse(source)
            self._template = self._environment.from_string(source)
        except Exception as error:  # the parser raises what it likes
            raise self._failure(error) from error
        self.marks_answers = any(
            isinstance(block.call.node, nodes.ExtensionAttribute)
            for block in self.tree.find_all(nodes.CallBlock)
        )

    def render(self, messages: list[dict[str, Any]], *, ask: bool = False, **variables: Any) -> str:
        """The text that the template writes.

        Args:
            messages: ``[{"role", "content", …}]``.
            ask: write what asks for the next answer behind it.
            variables: names of special tokens, ``tools`` and whatever else the template may read.

        Raises:
            TemplateFailure: it raised something, or went beyond a bound.
        """
        return self._run(messages, ask, variables)[0]

    def render_marked(
        self, messages: list[dict[str, Any]], **variables: Any
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the characters ``(from, to)`` of it between ``{% generation %}`` and its end."""
        return self._run(messages, False, variables, marked=True)

    def _run(
        self, messages: list[dict[str, Any]], ask: bool, variables: Mapping[str, Any], *, marked: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        blocks: list[str] = []
        marks: list[tuple[int, int]] = []
        variables = {"tools": None, "documents": None, **variables}
        environment: Any = self._environment
        environment.begin()
        size = 0
        try:
            with environment.activate_tracker(blocks, marks) if marked else nullcontext():
                for block in self._template.generate(
                    messages=messages, add_generation_prompt=ask, **variables
                ):
                    size += len(block)
                    if size > LARGEST:
                        raise SecurityError(f"it writes more than {LARGEST:,} characters")
                    blocks.append(block)
        except Exception as error:  # templates raise what they like
            raise self._failure(error) from error
        return "".join(blocks), marks

    def _failure(self, error: Exception) -> TemplateFailure:
        words = printable(" ".join(str(error).split()) or type(error).__name__)
        line = error.lineno if isinstance(error, TemplateSyntaxError) else _line(error)
        lines = self.source.splitlines()
        text = lines[line - 1].strip() if line and line <= len(lines) else ""
        return TemplateFailure(words, line, printable(text, limit=120))


def _line(error: Exception) -> int | None:
    """The line of the template in which an error arose: Jinja rewrites its frames to say so."""
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in ("<template>", "<unknown>"):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


@lru_cache(maxsize=64)
def compiled(source: str) -> Template:
    """`Template` of a source, made once."""
    return Template(source)
