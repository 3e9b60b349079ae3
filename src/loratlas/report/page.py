"""The page: one HTML file that opens offline, asks for nothing and runs nothing but its own two scripts.

Every quote becomes an element that names its place in the study (``data-from``), and the study itself lies in
the file, so that whoever reads the page can check it. A content security policy with the hashes of the two
scripts keeps anything else from running, even if a name in the study were to slip through the escaping.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loratlas.errors import OutputError, StorageError
from loratlas.files import jsonable, write_text
from loratlas.report import sentences
from loratlas.report.figure_theme import DARK, LIGHT, Theme
from loratlas.report.figures import figures
from loratlas.report.markup import asset, templates
from loratlas.report.quotes import QuotedStudy
from loratlas.report.sections import sections


def build(study: Mapping[str, Any], out: str | Path) -> Path:
    """Write the page of a study.

    Args:
        study: the JSON object of schema ``loratlas.study``.
        out: the file to write, or a folder, which then gets ``report.html``. An older page is replaced; the
            file appears whole or not at all.

    Returns:
        The file that was written.

    Raises:
        RequestError: the object is no study.
        OutputError: the file cannot be written.
    """
    text = render(sentences.read(study))
    path = Path(out)
    if path.is_dir():
        path /= "report.html"
    if not path.parent.is_dir():
        raise OutputError(
            given=str(path),
            found=f"no folder {path.parent}",
            instead="a folder that exists and may be written to",
        )
    try:
        write_text(path, text)
    except StorageError as error:
        raise OutputError(
            given=str(path),
            found=f"the page {error.found}",
            instead="a folder that may be written to and has 6 MB of room",
        ) from error.__cause__
    return path


def render(ledger: QuotedStudy) -> str:
    """The page's whole text."""
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    drawn = figures(ledger)
    scripts = [_script(get_plotlyjs()), _script(asset("page.js"))]
    policy = (
        f"default-src 'none'; script-src {' '.join(_hash(text) for text in scripts)}; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    return (
        templates()
        .get_template("page.html.j2")
        .render(
            policy=policy,
            title=sentences.title(ledger),
            name=(ledger.word("/name"),),
            answer=sentences.answer(ledger),
            conditions=sentences.conditions(ledger),
            banners=sentences.banners(ledger),
            sections=sections(ledger, drawn),
            # What follows is ours, or JSON in which nothing can end the element.
            css=Markup(asset("page.css")),
            arms_light=Markup(_arm_colours(LIGHT)),
            arms_dark=Markup(_arm_colours(DARK)),
            figures=Markup(_json(drawn)),
            study=Markup(_json(ledger.study)),
            scripts=[Markup(text) for text in scripts],
        )
    )


def _arm_colours(theme: Theme) -> str:
    return "".join(f"--arm-{i}:{colour};" for i, colour in enumerate(theme.arms))


def _script(text: str) -> str:
    """A script as the browser will hash it: line ends are normalised when HTML is read."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"</(script)", r"<\\/\1", text, flags=re.IGNORECASE).replace("<!--", "\\x3c!--")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(value: Any) -> str:
    """JSON that can stand inside a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
