"""Write docs/api.md from the docstrings of the public list.

usage: python tools/api_reference.py [--check]
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import loratlas

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"


def reference() -> str:
    """The page: every public name with its signature and its docstring."""
    lines = [
        "# The Python API",
        "",
        "Written from the docstrings by `python tools/api_reference.py`. The command line uses the same words.",
        "",
    ]
    names = [name for name in loratlas.__all__ if not name.startswith("_")]
    functions = [name for name in names if inspect.isfunction(getattr(loratlas, name))]
    classes = [name for name in names if name not in functions]
    for title, group in (("Functions", functions), ("Objects", classes)):
        lines += [f"## {title}", ""]
        for name in group:
            lines += entry(name)
    return "\n".join(lines).rstrip() + "\n"


def entry(name: str) -> list[str]:
    """One public name."""
    thing = getattr(loratlas, name)
    lines = [f"### `loratlas.{name}`", ""]
    if inspect.isfunction(thing):
        lines += ["```python", signature(name, thing), "```", ""]
    lines += ["```text", inspect.cleandoc(thing.__doc__ or ""), "```", ""]
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            doc = inspect.getdoc(value)
            if (
                not member.startswith("_")
                and doc
                and (inspect.isfunction(value) or isinstance(value, property))
            ):
                kind = "" if isinstance(value, property) else "()"
                lines.append(f"- `.{member}{kind}`: {doc.splitlines()[0]}")
        lines.append("")
    return lines


def signature(name: str, function: object) -> str:
    """A function's arguments, one on each line."""
    arguments = []
    star = False
    for parameter in inspect.signature(function).parameters.values():  # pyright: ignore[reportArgumentType]
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            arguments.append("*")
            star = True
        arguments.append(str(parameter))
    return f"loratlas.{name}(\n" + "".join(f"    {argument},\n" for argument in arguments) + ")"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(PAGE.read_text(encoding="utf-8") != reference())
    PAGE.write_text(reference(), encoding="utf-8")
