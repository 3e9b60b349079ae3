"""The plotly figures of the report. They draw numbers that the study holds and nothing else.

Every figure is made for a light and a dark page.
"""

from __future__ import annotations

import math
from typing import Any

from loratlas.report.figure_theme import THEMES, Theme, blank_figure, colour, label
from loratlas.report.model_maps import model_map, scan_map
from loratlas.report.moves_section import moves_map
from loratlas.report.quotes import QuotedStudy

AXES: dict[str, tuple[str, str, str]] = {
    # name of the choice: field of the arm, title of the axis, word on the button
    "params": ("trainable", "Trainable parameters", "Parameters"),
    "time": ("step_seconds", "Seconds per step", "Step time"),
    "memory": ("peak_bytes", "Peak memory, MiB", "Memory"),
}

_MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "pentagon")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid", "dash")


def figures(ledger: QuotedStudy) -> dict[str, dict[str, dict[str, Any]]]:
    """Every figure for both themes: ``{figure: {theme: plotly JSON}}``.

    Figures are named ``pareto.params``, ``pareto.time``, ``pareto.memory``, ``curves``, ``tuning``, ``scan``, and
    ``map.0`` and ``moves.0`` for the first arm. A figure that the study has no numbers for is left out.
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
            keep(f"moves.{i}", name, moves_map(ledger, i, theme))
    return drawn


def pareto(ledger: QuotedStudy, axis: str, theme: Theme) -> Any:
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
    figure = blank_figure(
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


def _spread(ledger: QuotedStudy) -> float:
    """How far apart the ends of the arms' intervals lie, nats per token."""
    ends = [
        ledger.number(f"/arms/{i}/{key}") for i in ledger.items("/arms") for key in ("nll", "ci/0", "ci/1")
    ]
    known = [end for end in ends if end is not None]
    return max(known) - min(known)


def _point(ledger: QuotedStudy, i: int, x: float, y: float, theme: Theme, *, right: bool) -> dict[str, Any]:
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


def curves(ledger: QuotedStudy, theme: Theme) -> Any:
    """Training loss over steps, mean and spread over the evaluation seeds; None without any."""
    figure = blank_figure(
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


def tuning(ledger: QuotedStudy, theme: Theme) -> Any:
    """Loss on the tuning rows over the learning rate: marks are runs, lines means, the ring was chosen."""
    figure = blank_figure(
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


def _tuned(figure: Any, ledger: QuotedStudy, i: int, theme: Theme, runs: dict[float, list[float]]) -> None:
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
