"""The templates of the page: Jinja with escaping on, and the few words that they need beyond Jinja's own."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined

from loratlas.report.figure_theme import LIGHT
from loratlas.report.quotes import Quote, plain

_NAMED = re.compile(r"/(arms/\d+/name|findings/\d+/(arm|versus)|spec/reference|pareto/\w+/\d+)$")
_CODE = re.compile(r"/(placement|plan/text|\w*digest|revision)$")


@cache
def templates() -> Environment:
    """The page's templates. Everything that comes from a study is escaped; a field that is missing is an error."""
    made = Environment(
        loader=PackageLoader("loratlas.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"plain": plain, "element": element, "repr": repr}
    made.globals["colours"] = len(LIGHT.arms)
    return made


def asset(name: str) -> str:
    """A file that is inlined in the page: ``page.css`` or ``page.js``."""
    return files("loratlas.report").joinpath("assets", name).read_text(encoding="utf-8")


def element(quote: Quote) -> str:
    """What a quote becomes: ``data`` for a number, ``code`` for a placement or a digest, ``name`` for an arm.

    >>> element(Quote(text="all:2", form="word", how="value", paths=("/arms/0/placement",)))
    'code'
    """
    if quote.value is not None:
        return "data"
    if _NAMED.search(quote.paths[0]):
        return "name"
    return "code" if _CODE.search(quote.paths[0]) else "span"
