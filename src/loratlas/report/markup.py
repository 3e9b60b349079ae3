"""Facts as HTML: phrases, tables and plots. What comes from a study is escaped here."""

from __future__ import annotations

import html
import re

from loratlas.report.figures import LIGHT
from loratlas.report.quotes import Phrase, Quote, plain
from loratlas.report.tables import Table

_NAMED = re.compile(r"/(arms/\d+/name|findings/\d+/(arm|versus)|spec/reference|pareto/\w+/\d+)$")
_CODE = re.compile(r"/(placement|plan/text|\w*digest|revision)$")


def phrase(parts: Phrase) -> str:
    """A phrase as HTML: words escaped, every quote with the place in the study that it came from.

    >>> phrase(("a < b, ", Quote(text="<i>", form="word", how="value", paths=("/name",))))
    'a &lt; b, <span data-from="/name" data-form="word">&lt;i&gt;</span>'
    """
    if "\n" in parts:
        cut = parts.index("\n")
        return f"{phrase(parts[:cut])} <small>{phrase(parts[cut + 1 :])}</small>"
    return "".join(html.escape(part) if isinstance(part, str) else _quote(part) for part in parts)


def _quote(quote: Quote) -> str:
    where = html.escape(" ".join(path.replace(" ", "%20") for path in quote.paths))
    attributes = f'data-from="{where}" data-form="{quote.form}"'
    if quote.how != "value":
        attributes += f' data-how="{quote.how}"'
    text = html.escape(quote.text)
    if quote.value is not None:
        return f'<data value="{quote.value!r}" {attributes}>{text}</data>'
    if _NAMED.search(quote.paths[0]):
        return f'<span class="name" {attributes}>{text}</span>'
    if _CODE.search(quote.paths[0]):
        return f"<code {attributes}>{text}</code>"
    return f"<span {attributes}>{text}</span>"


def attribute(parts: Phrase) -> str:
    """A phrase as the value of an HTML attribute."""
    return html.escape(plain(parts))


def dot(arm: int | None) -> str:
    """The colour of an arm, as a dot beside its name; nothing for None."""
    if arm is None:
        return ""
    return f'<span class="dot" style="--c:var(--arm-{arm % len(LIGHT.arms)})" aria-hidden="true"></span>'


def table(content: Table, *, name: str, caption: str) -> str:
    """An HTML table with headers; the first cell of a row is its header.

    The roles are written out because a table that is laid out as cards on a narrow screen loses them.
    """
    head = "".join(
        f'<th scope="col" role="columnheader">{html.escape(each)}</th>' for each in content.columns
    )
    rows = "".join(
        _row(content.columns, row, key) for row, key in zip(content.rows, content.keys, strict=True)
    )
    return (
        f'<table class="{name}" role="table" aria-label="{html.escape(caption)}"><thead role="rowgroup">'
        f'<tr role="row">{head}</tr></thead><tbody role="rowgroup">{rows}</tbody></table>'
    )


def _row(columns: tuple[str, ...], row: tuple[Phrase, ...], key: int | None) -> str:
    made = [f'<th scope="row" role="rowheader">{dot(key)}{phrase(row[0])}</th>']
    for column, parts in zip(columns[1:], row[1:], strict=True):
        made.append(f'<td role="cell" data-label="{html.escape(column)}"><span>{phrase(parts)}</span></td>')
    return f'<tr role="row">{"".join(made)}</tr>'


def folded(summary: str, content: str) -> str:
    """Something that is shown on request."""
    return f'<details><summary>{html.escape(summary)}</summary><div class="scroll">{content}</div></details>'


def plot(figure: str, alternative: Phrase, *, identity: str = "", tall: bool = True) -> str:
    """The place of a figure, with its text alternative; the page's script draws it."""
    mark = f' id="{identity}"' if identity else ""
    size = "plot tall" if tall else "plot"
    said = attribute(alternative)
    return f'<div class="{size}"{mark} data-figure="{figure}" role="img" aria-label="{said}"></div>'


def title(key: str, text: str, lead: str = "") -> str:
    """A section's heading and what it shows, in a sentence (HTML)."""
    heading = f'<h2 id="{key}-title">{html.escape(text)}</h2>'
    return heading + (f'<p class="lead">{lead}</p>' if lead else "")
