"""Maps of a model: layers upwards, roles sideways, colour for a rank or a score."""

from __future__ import annotations

from typing import Any

from loratlas.report.figure_theme import Theme, blank_figure, label
from loratlas.report.quotes import QuotedStudy
from loratlas.report.scan_section import deciding


def positions(ledger: QuotedStudy) -> dict[str, tuple[int | None, str]]:
    """Layer and role of every site of the base, by path; the role names its tower unless that is the decoder."""
    by_path: dict[str, tuple[int | None, str]] = {}
    for site in ledger.at("/anatomy/sites") or []:
        scope = site.get("scope") or "decoder"
        role = site["role"] if scope == "decoder" else f"{scope} {site['role']}"
        by_path[site["path"]] = (site.get("layer"), role)
    return by_path


def cells(ledger: QuotedStudy, i: int) -> dict[tuple[int | None, str], int]:
    """Ranks of an arm's plan by (layer, role); the largest where a role has several sites in a layer."""
    known = positions(ledger)
    ranks: dict[tuple[int | None, str], int] = {}
    for site in ledger.at(f"/arms/{i}/plan/sites") or []:
        position = known.get(site["path"])
        if position is not None:
            ranks[position] = max(site["rank"], ranks.get(position, 0))
    return ranks


def model_map(ledger: QuotedStudy, i: int, theme: Theme) -> Any:
    """Layers upwards, roles sideways, colour for the rank, one scale for all arms. None without a plan."""
    ranks = cells(ledger, i)
    if not ranks:
        return None
    everything = [cells(ledger, j) for j in ledger.items("/arms")]
    used = {position for each in everything for position in each}
    # Outside the blocks stand embeddings and heads: shown only where an arm adapts them.
    sites = [one for one in positions(ledger).values() if one[0] is not None or one in used]
    roles = list(dict.fromkeys(role for _, role in sites))
    blocks = sorted({layer for layer, _ in sites if layer is not None})
    outside = [None] if any(layer is None for layer, _ in sites) else []
    layers: list[int | None] = [*blocks, *outside]
    names = ["none" if layer is None else str(layer) for layer in layers]
    figure = blank_figure(
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


def scores(ledger: QuotedStudy) -> dict[tuple[int | None, str], float]:
    """What the score that decided the study's scan says, by (layer, role); the mean where a role has several sites."""
    known, column = positions(ledger), ledger.at(f"/scan/signals/{deciding(ledger)}/name")
    values: dict[tuple[int | None, str], list[float]] = {}
    for score in ledger.at("/scan/scores") or []:
        position = known.get(score["path"])
        if score["signal"] == column and position is not None:
            values.setdefault(position, []).append(score["value"])
    return {position: sum(all_of_it) / len(all_of_it) for position, all_of_it in values.items()}


def scan_map(ledger: QuotedStudy, theme: Theme) -> Any:
    """Layers upwards, roles sideways, colour for the score. None without a scan."""
    by_position = scores(ledger)
    if not by_position:
        return None
    roles = list(dict.fromkeys(role for _, role in by_position))
    layers: list[int | None] = [*sorted({layer for layer, _ in by_position if layer is not None})]
    layers += [None] if any(layer is None for layer, _ in by_position) else []
    figure = blank_figure(
        theme,
        x={"tickangle": -90 if len(roles) > 8 else 0, "showgrid": False, "type": "category"},
        y={"title": "Layer", "showgrid": False, "type": "category", "nticks": 16},
        height=max(240, min(640, 90 + 24 * len(layers))),
        margin={"l": 46, "r": 8, "t": 8, "b": 8},
    )
    figure.add_heatmap(
        x=[label(role) for role in roles],
        y=["none" if layer is None else str(layer) for layer in layers],
        z=[[by_position.get((layer, role)) for role in roles] for layer in layers],
        zmin=0,
        zmax=max(by_position.values()),
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
