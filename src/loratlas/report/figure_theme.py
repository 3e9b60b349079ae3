"""What all figures share: the colours of both themes, safe labels, and an empty figure of the page's looks.

plotly reads a small HTML in every text it draws, so names are escaped by :func:`label` before they come near
it, and templates never hold a name.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

from loratlas.report.quotes import clean

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif"


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """Colours of a page: the arms' in order, then text, lines, background, and the scale of ranks."""

    arms: tuple[str, ...]
    text: str
    faint: str
    grid: str
    paper: str
    ranks: tuple[tuple[float, str], ...]


# The arms' colours follow M. Okabe and K. Ito's palette, darkened on light and lightened on dark so that each
# stands at 3:1 or more against the background; marker shapes and dashes tell arms apart as well.
LIGHT = Theme(
    arms=("#0069a8", "#c14a00", "#007a5a", "#a8437f", "#8a6100", "#3c5bc4", "#56603a", "#5a5a66"),
    text="#1d2430",
    faint="#5b6472",
    grid="#e6e5e0",
    paper="#ffffff",
    ranks=((0.0, "#dcebf3"), (0.35, "#8fbfd9"), (0.7, "#2f7fb0"), (1.0, "#0b3f66")),
)
DARK = Theme(
    arms=("#62b5ec", "#f4935a", "#45c79c", "#e59ac6", "#e3bb4f", "#9db2ff", "#b9c78c", "#b4b8c4"),
    text="#e7e9ee",
    faint="#a3abb8",
    grid="#2c333f",
    paper="#171b22",
    ranks=((0.0, "#1f3446"), (0.35, "#2f6a91"), (0.7, "#5aaede"), (1.0, "#c9ecff")),
)
THEMES = {"light": LIGHT, "dark": DARK}


def label(text: Any, *, width: int = 40) -> str:
    """A name that plotly draws as it is written: its tags, entities and formulas escaped, long ones cut.

    >>> label("<b>all</b> & more")
    '&lt;b&gt;all&lt;/b&gt; &amp; more'
    """
    shown = clean(str(text))
    if len(shown) > width:
        shown = shown[: width - 1] + "…"
    return html.escape(shown, quote=False).replace("$", "&#36;")  # dollars would ask for a formula


def colour(theme: Theme, i: int) -> str:
    """The colour of the i-th arm, the same in every figure."""
    return theme.arms[i % len(theme.arms)]


def blank_figure(theme: Theme, *, x: dict[str, Any], y: dict[str, Any], **layout: Any) -> Any:
    """An empty figure: axes, fonts, colours."""
    import plotly.graph_objects as go

    line = {"gridcolor": theme.grid, "linecolor": theme.faint, "zeroline": False, "automargin": True}
    title = {"font": {"size": 13, "color": theme.faint}}
    figure = go.Figure()
    settings: dict[str, Any] = {
        "template": "none",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 13, "color": theme.text},
        "margin": {"l": 62, "r": 16, "t": 12, "b": 48},
        "height": 400,
        "hoverlabel": {
            "bgcolor": theme.paper,
            "bordercolor": theme.faint,
            "font": {"family": FONT, "size": 13, "color": theme.text},
            "align": "left",
        },
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 13}},
        "hovermode": "closest",
    }
    figure.update_layout(**{**settings, **layout})
    figure.update_xaxes(**{**line, **x, "title": {**title, "text": x.get("title", "")}})
    figure.update_yaxes(**{**line, **y, "title": {**title, "text": y.get("title", "")}})
    return figure
