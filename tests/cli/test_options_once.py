"""An option that means the same is declared once; what bears its name elsewhere means something else, and says so."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import combinations
from pathlib import Path

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
