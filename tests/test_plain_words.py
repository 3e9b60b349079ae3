"""What users read is plain technical English: none of these words stands in README, guide, help, errors or the page."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]
TEMPLATES = sorted((ROOT / "src" / "loratlas" / "report" / "templates").rglob("*.j2"))
MODULES = sorted((ROOT / "src" / "loratlas").rglob("*.py"))
COMMANDS = sorted((ROOT / "src" / "loratlas" / "cli").rglob("*.py"))

INSTEAD = {
    r"\b(told|tells) (by|from|as|in)\b": "reported, recognised",
    r"\bcannot be told\b": "unidentified",
    r"\badaptation pays\b|\bpays (where|for it)\b|\bwhat pays\b": "where adapters help most",
    r"\bspends?\b|\bspending\b|\bspent\b": "uses, costs, budget",
    r"\bthat (nothing|chose nothing)\b.{0,40}\bchosen\b|\bchose nothing\b": "held-out rows",
    r"\bin the guise of\b": "as",
    r"\bstands? beside\b|\bbeside\b(?!s)": "next to, in the same folder, in addition to",
    r"\byields\b": "gives",
    r"\brehears\w+": "dry run",
    r"\bshows the way\b": "what was measured",
    r"\blies (there|already|elsewhere)\b|\bits card lies\b": "is",
    r"\bgo(es|ne)? on (with|from|where|later|in)\b": "continue, resume",
    r"\btaken? apart\b|\bcounted apart\b|\bcame apart\b": "split, separately, is an outlier",
    r"\bwill do\b": "is enough",
    r"\b(seats|tenants|company)\b": "the field's word",
    r"\bstranger'?s?\b": "somebody else's",
    r"\bhand(s|ed)? (it |them |the adapter )?(on|over|out|back)\b": "pass, export, return",
    r"\bcame along\b|\bbrings? .{0,20}\balong\b": "included",
    r"\bof its own accord\b": "itself",
    r"\bobeyed\b": "used",
    r"\bside by side, filled\b|\blaid side by side\b": "padded",
    r"\bnobody\b|\bsomebody\b(?! else)": "name who, or use the passive",
    r"\bmatter of its own\b|\bown matter\b": "decided by",
}
"""Pattern → what to write instead."""


def texts_of(path: Path) -> list[tuple[int, str]]:
    """(line, text) of what a module says: its strings with a space in them, docstrings left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    # A string that stands for itself explains the constant above it.
    documented |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found, inner = [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inner |= {id(value) for value in node.values}
            text = "".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        if " " in text and id(node) not in documented | inner:
            found.append((node.lineno, " ".join(text.split())))
    return found


def help_of(path: Path) -> list[tuple[int, str]]:
    """Docstrings of functions that take options: they are a command's help."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        (node.lineno, " ".join((ast.get_docstring(node) or "").split()))
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and "options." in ast.unparse(node.args)
    ]


def wrong_words(text: str) -> list[str]:
    return [
        f"{match[0]!r}: {instead}"
        for pattern, instead in INSTEAD.items()
        for match in re.finditer(pattern, text, re.I)
    ]


@pytest.mark.parametrize("page", [*PAGES, *TEMPLATES], ids=lambda path: path.name)
def test_pages(page: Path):
    text = page.read_text(encoding="utf-8")
    assert not wrong_words(" ".join(text.split()))


@pytest.mark.parametrize("module", MODULES, ids=lambda path: "/".join(path.parts[-2:]))
def test_strings(module: Path):
    said = [(line, wrong) for line, text in texts_of(module) for wrong in wrong_words(text)]
    assert not said


@pytest.mark.parametrize("module", COMMANDS, ids=lambda path: path.name)
def test_help(module: Path):
    assert not [(line, wrong) for line, text in help_of(module) for wrong in wrong_words(text)]


def test_wrong_words_are_seen(tmp_path: Path):
    module = tmp_path / "module.py"
    module.write_text('"""Told by nobody."""\nX = f"{1} spends what the other one does"\n"""Beside it."""\n')
    assert [line for line, _ in texts_of(module)] == [2]
    assert wrong_words(texts_of(module)[0][1]) == ["'spends': uses, costs, budget"]
    assert wrong_words("its card lies beside it, in the guise of a base") != []
    assert not wrong_words("compared besides the loss, as a plain sentence says")
