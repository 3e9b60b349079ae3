"""What errors suggest can be typed: every command, option and value in every ``instead=`` of the source exists.

Suggested placements are typed one by one in tests/placement/test_suggestions.py.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from loratlas.cli.app import build
from loratlas.errors import python_spelling
from loratlas.placement.budget import parse_budget
from loratlas.placement.language import parse

ROOT = Path(__file__).resolve().parents[1]
GAP = "…"
"""Where a text takes its words from what was given."""

COMMAND = re.compile(r"loratlas ([a-z]+(?:-[a-z]+)?)\b([^`,;]*)")
OPTION = re.compile(r"(?<![\w-])--([a-z][a-z-]*[a-z])(?:[ =]([^\s`,;()]+))?")
BUDGET = re.compile(r"(?<![\w-])(?:params|time|memory|like)=[\w.%:,+-]*[\w%]")
FOREIGN = re.compile(r"\bllama-[\w-]+[^,;`]*")
"""Commands of other tools, with their options."""


def texts_of(node: ast.expr) -> list[str]:
    """The texts that an expression can be, with `GAP` for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return ["".join(v.value if isinstance(v, ast.Constant) else GAP for v in node.values)]
    if isinstance(node, ast.IfExp):
        return texts_of(node.body) + texts_of(node.orelse)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [a + b for a in texts_of(node.left) for b in texts_of(node.right)]
    if isinstance(node, ast.BoolOp):
        return [text for value in node.values for text in texts_of(value)]
    return [GAP]


def suggested() -> Iterator[tuple[str, str]]:
    """(where, text) of every ``instead=`` in the source."""
    for path in sorted((ROOT / "src" / "loratlas").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "instead":
                where = f"{path.relative_to(ROOT / 'src' / 'loratlas')}:{node.value.lineno}"
                yield from ((where, text) for text in texts_of(node.value))


SUGGESTED = sorted(set(suggested()))
APP: Any = build()


def options(command: str) -> dict[str, Any]:
    """Option → its parameter."""
    return {
        name.removeprefix("--"): parameter
        for parameter in APP.commands[command].params
        for name in parameter.opts
        if name.startswith("--")
    }


OPTIONS: dict[str, list[tuple[str, Any]]] = {}
"""Option → (command, parameter) of all that have it."""
for _command in APP.commands:
    for _name, _parameter in options(_command).items():
        OPTIONS.setdefault(_name, []).append((_command, _parameter))


def is_typed(value: str) -> bool:
    """Whether a word is meant as it stands: no placeholder such as DIR or N, no part of a sentence."""
    return not value.isupper() and GAP not in value and value not in ENGLISH


ENGLISH = frozenset(
    re.findall(
        r"\w+",
        "with without and or as to for instead of alone that there from in on is are it was has takes than before if "
        "both then only where which by names lists says",
    )
)
"""Words that may follow an option in a sentence."""


def accepts(option: str, value: str) -> bool:
    """Whether a command takes this value for this option."""
    for command, parameter in OPTIONS[option]:
        context = typer.Context(APP.commands[command])
        try:
            parameter.process_value(context, [value] if parameter.multiple else value)
        except Exception as problem:
            if not hasattr(problem, "format_message"):  # not what typer says of a wrong value
                raise
        else:
            return True
    return False


def test_texts_are_seen():
    assert len(SUGGESTED) >= 450
    assert sum("--" in text for _, text in SUGGESTED) >= 100
    gaps = [where for where, text in SUGGESTED if text.strip() == GAP]
    assert len(gaps) <= len(SUGGESTED) / 5, gaps  # texts that are made elsewhere


@pytest.mark.parametrize(("where", "text"), SUGGESTED, ids=[where for where, _ in SUGGESTED])
def test_what_is_suggested_exists(where: str, text: str):
    for name, rest in COMMAND.findall(text):
        if name in APP.commands:
            for option, _ in OPTION.findall(rest):
                assert option in options(name) or option in OPTIONS, f"loratlas {name} has no --{option}"
        else:
            assert "`" not in text or f"`loratlas {name}" not in text, f"no command {name}"
    for option, value in OPTION.findall(FOREIGN.sub("", text)):
        assert option in OPTIONS or option == "help", f"no command has --{option}"
        flag = any(parameter.is_flag for _, parameter in OPTIONS.get(option, []))
        if value and is_typed(value.rstrip(".:")) and not flag and option in OPTIONS:
            word = value.rstrip(".:").strip("'\"")
            assert accepts(option, word), f"--{option} takes no {word}"
            if option == "placement" and word != "auto":
                assert parse(word).terms
    for budget in BUDGET.findall(text):
        if GAP not in budget and text.partition(budget)[2][:1] != GAP:
            assert parse_budget(budget).quantity


@pytest.mark.parametrize(("where", "text"), SUGGESTED, ids=[where for where, _ in SUGGESTED])
def test_what_is_suggested_can_be_said_in_python(where: str, text: str):
    """A Python caller reads arguments; what stays an option there is a command in backticks."""
    text = FOREIGN.sub("", text)
    said = re.sub(r"`[^`]*`|loratlas [a-z]+-?[a-z]* [^,;]*", "", python_spelling(text))
    assert not OPTION.search(said), said


def test_a_word_that_does_not_exist_is_seen():
    assert texts_of(ast.parse("f'--lr {x}' if a else 'b'", mode="eval").body) == ["--lr …", "b"]
    assert not accepts("dtype", "float31")
    assert accepts("dtype", "float32")
    assert not accepts("steps", "some")
    assert OPTION.findall("--placement all:8, or --from DIR") == [("placement", "all:8"), ("from", "DIR")]
    assert BUDGET.findall("`params=1M`, or --budget like=q,v:4") == ["params=1M", "like=q,v:4"]
