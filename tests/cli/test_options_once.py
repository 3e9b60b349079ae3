"""An option that means the same is declared once; what bears its name elsewhere means something else, and says so."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from enum import Enum
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

import loratlas
from loratlas.cli import check_lint, evaluate, export, scan, show_shrink, train

ROOT = Path(__file__).resolve().parents[2] / "src" / "loratlas" / "cli"
ALIKE = 0.75
"""Share of two help texts from which on they say the same."""


def declared(text: str) -> Iterator[tuple[str, str]]:
    """(name, help) of every option that a module declares."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "typer.Option":
            named = {one.arg: ast.unparse(one.value) for one in node.keywords}
            for given in node.args:
                if isinstance(given, ast.Constant) and str(given.value).startswith("--"):
                    yield str(given.value).partition("/")[0], named.get("help", "")


def twice(texts: list[str]) -> list[tuple[str, str]]:
    """Names of options that two declarations explain alike."""
    options = [option for text in texts for option in declared(text)]
    return [
        (name, one)
        for (name, one), (other, two) in combinations(options, 2)
        if name == other and SequenceMatcher(None, one, two).ratio() > ALIKE
    ]


def test_no_option_is_declared_twice():
    texts = [path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.py"))]
    assert sum(1 for text in texts for _ in declared(text)) > 60
    assert twice(texts) == []


def test_an_option_declared_twice_is_seen():
    one = 'Base = Annotated[str, typer.Option("--base", help="The base, if it is elsewhere.")]'
    assert twice([one, one.replace("elsewhere", "not there")]) == [
        ("--base", "'The base, if it is elsewhere.'")
    ]
    assert twice([one, one.replace("--base", "--model")]) == []


COMMANDS = {
    "train": (train.train, loratlas.train),
    "eval": (evaluate.evaluate, loratlas.evaluate),
    "scan": (scan.scan, loratlas.scan),
    "export": (export.export, loratlas.export),
    "show": (show_shrink.show_adapter, loratlas.show),
    "shrink": (show_shrink.shrink_adapter, loratlas.shrink),
    "check": (check_lint.check_adapter, loratlas.check),
}
"""Command → its function, and the one of the package that does the same."""

SHOWN = {"as_json", "verbose"}
"""How a command prints; a function returns."""

DIFFERENT = {
    **dict.fromkeys(
        [("scan", name) for name in ("min_rank", "max_rank", "multiple", "whole_layers", "top_layers")],
        "one `limits` in Python",
    ),
    ("scan", "yes"): "no `minutes` in Python",
    ("scan", "minutes"): "who types waits; a function has no limit unless it gets one",
    ("train", "dtype"): "auto is asked of the machine, once, before the settings are made",
    ("eval", "dtype"): "the same",
    ("scan", "dtype"): "the same",
    ("eval", "batch_size"): "`also` in Python",
    ("export", "target"): "who types says for whom",
    ("show", "figure"): "a result draws itself in Python: `show(…).plot()`",
    ("check", "adapters"): "one after the other in Python",
}
"""(command, option) → why its name or its value where nothing is given is another than in Python."""


def plain(value: Any) -> Any:
    """What stands for "not given" is one thing: typer knows None alone."""
    value = value.value if isinstance(value, Enum) else value
    return None if value in ((), inspect.Parameter.empty) else value


def disagreements(command: Callable[..., Any], function: Callable[..., Any]) -> set[str]:
    """Options of a command that its function lacks, or takes another value for where nothing is given."""
    settings = {field.name: field.default for field in dataclasses.fields(loratlas.Settings)}
    arguments = {name: one.default for name, one in inspect.signature(function).parameters.items()}
    if "settings" in arguments:  # by name, or among the settings
        arguments = settings | {
            name: settings[name] if name in settings and value is None else value
            for name, value in arguments.items()
        }
    return {
        name
        for name, one in inspect.signature(command).parameters.items()
        if name not in SHOWN and (name not in arguments or plain(one.default) != plain(arguments[name]))
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_is_an_argument_of_the_same_name_and_default(name: str):
    """The one declaration that three texts have to agree with; docs/decisions/options-thrice.md says why three."""
    known = {option for command, option in DIFFERENT if command == name}
    assert disagreements(*COMMANDS[name]) == known


def test_an_option_that_differs_is_seen():
    def command(rows: int = 3, out: str = "x", as_json: bool = False) -> None: ...
    def function(rows: int = 4) -> None: ...

    assert disagreements(command, function) == {"rows", "out"}
