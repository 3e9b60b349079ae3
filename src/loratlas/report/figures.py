"""The plotly figures of the report. They draw numbers that the study holds and nothing else.

plotly reads a small HTML in every text it draws, so names are escaped by :func:`label` before they come near
it, and templates never hold a name. Every figure is made for a light and a dark page.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import Any

from loratlas.report.quotes import Ledger, clean

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif"

AXES: dict[str, tuple[str, str, str]] = {
    # name of the choice: field of the arm, title of the axis, word on the button
    "params": ("trainable", "Trainable parameters", "Parameters"),
    "time": ("step_seconds", "Seconds per step", "Step time"),
    "memory": ("peak_bytes", "Peak memory, MiB", "Memory"),
}

_MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "pentagon")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid", "dash")


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


def figures(ledger: Ledger) -> dict[str, dict[str, dict[str, Any]]]:
    """Every figure for both themes: ``{figure: {theme: plotly JSON}}``.

    Figures are named ``pareto.params``, ``pareto.time``, ``pareto.memory``, ``curves``, ``tuning``, ``scan`` and
    ``map.0`` for the first arm. A figure that the study has no numbers for is left out.
    """
    import plotly.graph_objects as go

    drawn: dict[str, dict[str, dict[str, Any]]] = {}

    def keep(name: str, theme: str, figure: go.Figure | None) -> None:
        if figure is not None:
            drawn.setdefault(name, {})[theme] = {
                key: value for key, value in figure.to_plotly_json().items() if key in ("data", "layout")
            }

    for name, theme in THEMES.items():
        for axis in AXES:
            keep(f"pareto.{axis}", name, pareto(ledger, axis, theme))
        keep("curves", name, curves(ledger, theme))
        keep("tuning", name, tuning(ledger, theme))
        keep("scan", name, scan_map(ledger, theme))
        for i in ledger.items("/arms"):
            keep(f"map.{i}", name, model_map(ledger, i, theme))
    return drawn


def _figure(theme: Theme, *, x: dict[str, Any], y: dict[str, Any], **layout: Any) -> Any:
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


def pareto(ledger: Ledger, axis: str, theme: Theme) -> Any:
    """Loss against one cost, and the frontier of arms that none beats in both; None without points."""
    field, title, _ = AXES[axis]
    points: list[tuple[int, float, float]] = []
    for i in ledger.items("/arms"):
        x, y = ledger.number(f"/arms/{i}/{field}"), ledger.number(f"/arms/{i}/nll")
        if x is not None and y is not None:
            points.append((i, x / 2**20 if axis == "memory" else x, y))
    if not points:
        return None
    costs = [x for _, x, _ in points]
    low, high = min(costs), max(costs)
    wide = low > 0 and high / low > 8
    figure = _figure(
        theme,
        x={"title": title, "type": "log" if wide else "linear", "range": _range(low, high, log=wide)}
        | ({"dtick": 1} if wide else {}),
        y={"title": f"Loss, {ledger.per}", "tickformat": ".2f" if _spread(ledger) > 0.05 else ".3f"},
        showlegend=False,
    )
    named = {ledger.at(f"/arms/{i}/name"): (x, y) for i, x, y in points}
    front = sorted(named[name] for name in ledger.at(f"/pareto/{axis}") or [] if name in named)
    if len(front) > 1:
        figure.add_scatter(
            x=[x for x, _ in front],
            y=[y for _, y in front],
            mode="lines",
            line={"color": theme.faint, "width": 1.5, "dash": "dot", "shape": "hv"},
            hoverinfo="skip",
            name="frontier",
        )
    for (i, x, y), right in zip(points, _sides(points, log=wide), strict=True):
        figure.add_scatter(**_point(ledger, i, x, y, theme, right=right))
    return figure


def _sides(points: list[tuple[int, float, float]], *, log: bool) -> list[bool]:
    """For each point whether its name stands to the right: inwards, and apart from a near neighbour's."""
    across = [math.log10(x) if log else x for _, x, _ in points]
    upwards = [y for _, _, y in points]
    width, height = max(across) - min(across) or 1.0, max(upwards) - min(upwards) or 1.0
    sides: list[bool] = []
    for n, (x, y) in enumerate(zip(across, upwards, strict=True)):
        right = x - min(across) <= width / 2
        for m in range(n):
            near = abs(across[m] - x) < width / 6 and abs(upwards[m] - y) < height / 10
            if near and sides[m] == right:
                right = not right
        sides.append(right)
    return sides


def _range(low: float, high: float, *, log: bool) -> list[float]:
    """Room for the names beside the points; points that hardly differ are not torn apart."""
    if log:
        left, right = math.log10(low), math.log10(high)
        room = 0.22 * (right - left)
        return [left - room, right + room]
    room = max(0.28 * (high - low), 0.1 * high, 1e-9)
    return [max(0.0, low - room), high + room]


def _spread(ledger: Ledger) -> float:
    """How far apart the ends of the arms' intervals lie, nats per token."""
    ends = [
        ledger.number(f"/arms/{i}/{key}") for i in ledger.items("/arms") for key in ("nll", "ci/0", "ci/1")
    ]
    known = [end for end in ends if end is not None]
    return max(known) - min(known)


def _point(ledger: Ledger, i: int, x: float, y: float, theme: Theme, *, right: bool) -> dict[str, Any]:
    low, high = ledger.number(f"/arms/{i}/ci/0"), ledger.number(f"/arms/{i}/ci/1")
    bars = {}
    if low is not None and high is not None:
        bars = {
            "error_y": {
                "array": [high - y],
                "arrayminus": [y - low],
                "symmetric": False,
                "thickness": 1.6,
                "width": 5,
            }
        }
    name = label(ledger.at(f"/arms/{i}/name"), width=22)
    gap = "\u2002"
    return {
        "x": [x],
        "y": [y],
        "mode": "markers+text",
        "name": name,
        "text": [gap + name if right else name + gap],
        "textposition": "top right" if right else "top left",  # the frontier leaves a point sideways
        "textfont": {"color": theme.text, "size": 13},
        "marker": {"color": colour(theme, i), "size": 12, "symbol": _MARKERS[i % len(_MARKERS)]},
        "hovertemplate": "%{x:,.4~g}<br>loss %{y:.4f}<extra></extra>",
        **bars,
    }


def curves(ledger: Ledger, theme: Theme) -> Any:
    """Training loss over steps, mean and spread over the evaluation seeds; None without any."""
    figure = _figure(
        theme,
        x={"title": "Step"},
        y={"title": f"Training loss, {ledger.per}"},
        hovermode="x unified",
    )
    bands: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    for i in ledger.items("/arms"):
        curve = {key: ledger.at(f"/arms/{i}/curve/{key}") for key in ("steps", "mean", "low", "high")}
        if not curve["steps"] or not curve["mean"]:
            continue
        shade, name = colour(theme, i), label(ledger.at(f"/arms/{i}/name"))
        line = {"color": shade, "width": 2, "dash": _DASHES[i % len(_DASHES)]}
        both = {"legendgroup": f"arm{i}", "x": curve["steps"], "mode": "lines", "name": name}
        if curve["low"] and curve["high"]:
            edge = {**both, "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
            bands.append({**edge, "y": curve["low"]})
            bands.append(
                {**edge, "y": curve["high"], "fill": "tonexty", "fillcolor": _see_through(shade, 0.13)}
            )
        lines.append({**both, "y": curve["mean"], "line": line, "hovertemplate": "%{y:.3f}"})
    for trace in bands + lines:  # every line above every band
        figure.add_scatter(**trace)
    return figure if lines else None


def _see_through(colour_: str, alpha: float) -> str:
    red, green, blue = (int(colour_[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def tuning(ledger: Ledger, theme: Theme) -> Any:
    """Loss on the tuning rows over the learning rate: marks are runs, lines means, the ring was chosen."""
    figure = _figure(
        theme,
        x={"title": "Learning rate", "type": "log", "exponentformat": "power", "minor": {"ticks": ""}},
        y={"title": "Loss on the tuning rows"},
    )
    rates: set[float] = set()
    for i in ledger.items("/arms"):
        runs: dict[float, list[float]] = {}
        for j in ledger.items(f"/arms/{i}/tuning"):
            at = f"/arms/{i}/tuning/{j}"
            rate, value = ledger.number(f"{at}/lr"), ledger.number(f"{at}/nll")
            if rate is not None and value is not None and not ledger.at(f"{at}/diverged"):
                runs.setdefault(rate, []).append(value)
        if not runs:
            continue
        rates.update(runs)
        _tuned(figure, ledger, i, theme, runs)
    if rates:
        ticks = sorted(rates)
        figure.update_xaxes(tickvals=ticks, ticktext=[f"{rate:g}" for rate in ticks])
    return figure if figure.data else None


def _tuned(figure: Any, ledger: Ledger, i: int, theme: Theme, runs: dict[float, list[float]]) -> None:
    shade, symbol = colour(theme, i), _MARKERS[i % len(_MARKERS)]
    name = label(ledger.at(f"/arms/{i}/name"))
    rates = sorted(runs)
    means = {rate: sum(runs[rate]) / len(runs[rate]) for rate in rates}
    figure.add_scatter(
        x=rates,
        y=[means[rate] for rate in rates],
        mode="lines",
        name=name,
        legendgroup=f"arm{i}",
        line={"color": shade, "width": 2, "dash": _DASHES[i % len(_DASHES)]},
        hovertemplate="%{x:g}: mean %{y:.4f}",
    )
    figure.add_scatter(
        x=[rate for rate in rates for _ in runs[rate]],
        y=[value for rate in rates for value in runs[rate]],
        mode="markers",
        name=name,
        legendgroup=f"arm{i}",
        showlegend=False,
        marker={"color": shade, "size": 6, "symbol": symbol, "opacity": 0.75},
        hovertemplate="%{x:g}: %{y:.4f}",
    )
    chosen = ledger.number(f"/arms/{i}/lr")
    if chosen in means:
        figure.add_scatter(
            x=[chosen],
            y=[means[chosen]],
            mode="markers",
            name=name,
            legendgroup=f"arm{i}",
            showlegend=False,
            marker={"color": shade, "size": 15, "symbol": "circle-open", "line": {"width": 2.5}},
            hovertemplate="chosen: %{x:g}",
        )


def places(ledger: Ledger) -> dict[str, tuple[int | None, str]]:
    """Layer and role of every site of the base, by path; the role names its tower unless that is the decoder."""
    found: dict[str, tuple[int | None, str]] = {}
    for site in ledger.at("/anatomy/sites") or []:
        scope = site.get("scope") or "decoder"
        role = site["role"] if scope == "decoder" else f"{scope} {site['role']}"
        found[site["path"]] = (site.get("layer"), role)
    return found


def cells(ledger: Ledger, i: int) -> dict[tuple[int | None, str], int]:
    """Ranks of an arm's plan by (layer, role); the largest where a role has several sites in a layer."""
    known = places(ledger)
    found: dict[tuple[int | None, str], int] = {}
    for site in ledger.at(f"/arms/{i}/plan/sites") or []:
        place = known.get(site["path"])
        if place is not None:
            found[place] = max(site["rank"], found.get(place, 0))
    return found


def model_map(ledger: Ledger, i: int, theme: Theme) -> Any:
    """Layers upwards, roles sideways, colour for the rank, one scale for all arms. None without a plan."""
    ranks = cells(ledger, i)
    if not ranks:
        return None
    everything = [cells(ledger, j) for j in ledger.items("/arms")]
    used = {place for each in everything for place in each}
    # Outside the blocks stand embeddings and heads: shown only where an arm adapts them.
    sites = [place for place in places(ledger).values() if place[0] is not None or place in used]
    roles = list(dict.fromkeys(role for _, role in sites))
    blocks = sorted({layer for layer, _ in sites if layer is not None})
    outside = [None] if any(layer is None for layer, _ in sites) else []
    layers: list[int | None] = [*blocks, *outside]
    names = ["none" if layer is None else str(layer) for layer in layers]
    figure = _figure(
        theme,
        x={"tickangle": -90 if len(roles) > 4 else 0, "showgrid": False, "type": "category"},
        y={"title": "Layer", "showgrid": False, "type": "category", "nticks": 16},
        height=max(240, min(640, 90 + 24 * len(layers))),
        margin={"l": 46, "r": 8, "t": 8, "b": 8},
    )
    grid = {"x": [label(role) for role in roles], "y": names, "showscale": False, "xgap": 2, "ygap": 2}
    figure.add_heatmap(
        **grid,
        z=[[0 if (layer, role) in sites else None for role in roles] for layer in layers],
        colorscale=[(0, theme.grid), (1, theme.grid)],
        opacity=0.5,
        hoverongaps=False,
        hovertemplate="layer %{y}, %{x}: no adapter<extra></extra>",
    )
    figure.add_heatmap(
        **grid,
        z=[[ranks.get((layer, role)) for role in roles] for layer in layers],
        zmin=0,
        zmax=max(max(each.values()) for each in everything if each),
        colorscale=[list(stop) for stop in theme.ranks],
        texttemplate="%{z}" if len(layers) <= 40 and len(roles) <= 14 else None,
        textfont={"size": 11},
        hoverongaps=False,
        hovertemplate="layer %{y}, %{x}: rank %{z}<extra></extra>",
    )
    return figure


def scores(ledger: Ledger) -> dict[tuple[int | None, str], float]:
    """What the first signal of the study's scan says, by (layer, role); the mean where a role has several sites."""
    known, column = places(ledger), ledger.at("/scan/signals/0/name")
    found: dict[tuple[int | None, str], list[float]] = {}
    for score in ledger.at("/scan/scores") or []:
        place = known.get(score["path"])
        if score["signal"] == column and place is not None:
            found.setdefault(place, []).append(score["value"])
    return {place: sum(values) / len(values) for place, values in found.items()}


def scan_map(ledger: Ledger, theme: Theme) -> Any:
    """Layers upwards, roles sideways, colour for the score. None without a scan."""
    told = scores(ledger)
    if not told:
        return None
    roles = list(dict.fromkeys(role for _, role in told))
    layers: list[int | None] = [*sorted({layer for layer, _ in told if layer is not None})]
    layers += [None] if any(layer is None for layer, _ in told) else []
    figure = _figure(
        theme,
        x={"tickangle": -90 if len(roles) > 8 else 0, "showgrid": False, "type": "category"},
        y={"title": "Layer", "showgrid": False, "type": "category", "nticks": 16},
        height=max(240, min(640, 90 + 24 * len(layers))),
        margin={"l": 46, "r": 8, "t": 8, "b": 8},
    )
    figure.add_heatmap(
        x=[label(role) for role in roles],
        y=["none" if layer is None else str(layer) for layer in layers],
        z=[[told.get((layer, role)) for role in roles] for layer in layers],
        zmin=0,
        zmax=max(told.values()),
        colorscale=[list(stop) for stop in theme.ranks],
        texttemplate="%{z:.2g}" if len(layers) <= 40 and len(roles) <= 14 else None,
        textfont={"size": 11},
        showscale=False,
        xgap=2,
        ygap=2,
        hoverongaps=False,
        hovertemplate="layer %{y}, %{x}: %{z:.4g}<extra></extra>",
    )
    return figure
