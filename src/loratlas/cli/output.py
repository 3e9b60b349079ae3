"""What people and programs see: tables or one JSON object on standard output, all else on standard error.

Colours and moving bars appear on terminals only; a pipe or a file gets plain lines.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from io import StringIO
from typing import TYPE_CHECKING, Any, TextIO

from loratlas.errors import LoratlasError, printable, printable_lines
from loratlas.files import jsonable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from loratlas.anatomy.sites import Site
    from loratlas.data.rows import Rows
    from loratlas.display import Block


def console(*, error: bool = False) -> Console:
    """A rich console on standard output (or error) as it is at this moment; without colour when not a terminal."""
    from rich.console import Console

    return Console(stderr=error, highlight=False, soft_wrap=False, emoji=False)


def say(text: str = "") -> None:
    """Print a line for people on standard output."""
    with _Pipe(sys.stdout):
        _write(_safe(text))


def note(text: str) -> None:
    """Print a remark on standard error, where the result is not."""
    with _Pipe(sys.stderr):
        _write(_safe(text), error=True)


def ranks(sites: Sequence[Site], before: Mapping[str, int], after: Mapping[str, int]) -> None:
    """Draw a map of ranks on standard error where that is a terminal; elsewhere the sentence beside it says enough."""
    if not sys.stderr.isatty():
        return
    from rich.text import Text

    from loratlas.dynamic.rank_map import EDGE, rank_map

    drawn = rank_map(sites, before, after, width=console(error=True).width)
    text = Text(overflow="crop", no_wrap=True)
    heading, scale, *_ = drawn.lines()
    text.append(f"{printable(heading)}\n{scale}", "dim")
    for name, cells in drawn.rows:
        text.append(f"\n{' ' * EDGE}{printable(name)}".ljust(drawn.label + 1))
        for cell in cells:
            changed = "bold green" if cell.more else "bold magenta" if cell.fewer else ""
            text.append(cell.text, changed or ("dim" if cell.none else ""))
    with _Pipe(sys.stderr):
        _write(text, error=True)


def _safe(text: str) -> Text:
    """Text as it is: no escape sequence is obeyed and no bracket is read as style, whoever wrote it."""
    from rich.text import Text

    return Text(printable_lines(text), overflow="fold")


def _write(thing: Any, *, error: bool = False) -> None:
    """Print what rich can draw; where no terminal shows it, without spaces at the ends of lines."""
    stream, screen = sys.stderr if error else sys.stdout, console(error=error)
    if stream.isatty():
        screen.print(thing)
        return
    with screen.capture() as drawn:
        # A sentence in a file is one line; a table keeps its width.
        screen.print(thing, soft_wrap=not _is_drawn(thing))
    stream.write("".join(f"{line.rstrip()}\n" for line in drawn.get().splitlines()))
    stream.flush()


@contextmanager
def help_without_padding() -> Iterator[None]:
    """Help that is printed within this context, by typer, fills no line with spaces where it goes to no terminal."""
    if sys.stdout.isatty():
        yield
        return
    text = StringIO()
    try:
        with redirect_stdout(text):
            yield
    finally:  # words for the shell's completion end in SystemExit
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines()))


def _is_drawn(thing: Any) -> bool:
    from rich.text import Text

    return not isinstance(thing, Text)


@contextmanager
def others_are_quoted() -> Iterator[None]:
    """Within this context what libraries warn of and log goes to standard error in a form that is safe to print.

    They quote configs, names and paths as they are.
    """

    class Quoted(logging.LogRecord):
        def getMessage(self) -> str:  # noqa: N802 (logging's name)
            return printable_lines(super().getMessage())

    def remarked(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        note(f"{category.__name__}: {message}")

    factory = logging.getLogRecordFactory()
    logging.setLogRecordFactory(Quoted)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = remarked
            yield
    finally:
        logging.setLogRecordFactory(factory)


def remark(rows: Rows) -> None:
    """Say what a person should know about rows that were read: columns and keys that nothing reads."""
    for sentence in rows.remarks:
        note(f"{rows.source}: {sentence}")


def show(thing: Table) -> None:
    """Print a table on standard output."""
    with _Pipe(sys.stdout):
        _write(thing)


def say_blocks(blocks: Sequence[Block]) -> None:
    """Print what a result shows: its tables and sentences, in their order."""
    from loratlas.display import drawn

    for block in blocks:
        if isinstance(block, str):
            say(block)
        else:
            show(drawn(block))


def emit(value: dict[str, Any]) -> None:
    """Print the one JSON object of a command. Numbers that JSON has no word for become null.

    Characters that a terminal would obey, or that turn or hide what is written, are JSON's escapes.
    """
    with _Pipe(sys.stdout):
        text = json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False)
        sys.stdout.write((text if text.isprintable() else "".join(map(_json_escape, text))) + "\n")
        sys.stdout.flush()


def _json_escape(character: str) -> str:
    return character if character.isprintable() else json.dumps(character)[1:-1]


def fail(error: LoratlasError, *, as_json: bool) -> int:
    """Say what went wrong, in the form that was asked for, and give the exit code."""
    if as_json:
        emit(error.to_json())
    else:
        with _Pipe(sys.stderr):
            _print_error(error)
    return error.exit_code


def _print_error(error: LoratlasError) -> None:
    from rich.table import Table
    from rich.text import Text

    stopped = error.exit_code == 130
    style = "bold yellow" if stopped else "bold red"
    _write(Text(f"{'Stopped' if stopped else 'Error'} ({error.code})", style), error=True)
    grid = Table.grid(padding=(0, 1))
    for label, text in (("given", error.given), ("found", error.found), ("instead", error.instead)):
        # The caret below a text must stay below its character: such texts begin on a line of their own.
        grid.add_row(f"  {label}:", _safe(text), style=None)
    _write(grid, error=True)


def table(*columns: str | tuple[str, str], title: str | None = None) -> Table:
    """An empty table of the house's looks. A column is a heading, or (heading, ``"right"``).

    A row has a cell for each of them: with one too few all that follow would stand under another heading. Numbers
    keep their width; where 80 columns are too few, the text columns give way.
    """
    from rich import box
    from rich.table import Table

    class Ruled(Table):
        def add_row(self, *cells: Any, **more: Any) -> None:
            if len(cells) != len(self.columns):
                raise ValueError(f"{len(cells)} cells in a table of {len(self.columns)} columns: {cells}")
            super().add_row(*(_safe(cell) if isinstance(cell, str) else cell for cell in cells), **more)

    drawn = Ruled(
        box=box.SIMPLE_HEAD,
        title=_safe(title) if title else None,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
    )
    for column in columns:
        heading, side = (column, "left") if isinstance(column, str) else column
        drawn.add_column(
            _safe(heading),
            justify="right" if side == "right" else "left",
            no_wrap=side == "right",
            overflow="fold",
        )
    return drawn


class _Pipe:
    """Let the reader of a pipe leave: what is printed afterwards goes nowhere, and the work goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, BrokenPipeError):
            return False
        silence(self._stream)
        return True


def silence(stream: TextIO) -> None:
    """Send the rest of a stream nowhere, so that flushing it at exit does not complain."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def join(names: Sequence[str]) -> str:
    """``["a", "b", "c"]`` → ``a, b and c``."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
