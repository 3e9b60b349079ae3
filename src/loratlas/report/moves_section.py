"""Arms whose adapters moved while they trained: ranks over sites and steps, decisions, and what each move gained."""

from __future__ import annotations

from typing import Any

from loratlas.report.figure_theme import Theme, blank_figure
from loratlas.report.placement_figure import ranks_over_time
from loratlas.report.quotes import Phrase, QuotedStudy
from loratlas.report.tables import Table


def moving(ledger: QuotedStudy) -> list[int]:
    """Indices of arms that have a finished run with decisions."""
    return [i for i in ledger.items("/arms") if ledger.items(f"/arms/{i}/moving/0/decisions")]


def lead(ledger: QuotedStudy) -> Phrase:
    """What is shown."""
    parts: Phrase = ()
    for number, i in enumerate(moving(ledger)):
        parts += (", " if number else "", ledger.word(f"/arms/{i}/name"))
    return (
        *parts,
        " placed adapters inside the runs, in steps that every arm has: no step was added. Losses are those of rows "
        "that a run had not been updated by yet, right before and right after a decision. A map shows the first run "
        "of its arm.",
    )


def caption(ledger: QuotedStudy, i: int) -> Phrase:
    """The map of an arm in words."""
    return (
        "Rank of every site of ",
        ledger.word(f"/arms/{i}/name"),
        ", seed ",
        ledger.quote("count", f"/arms/{i}/moving/0/seed"),
        ", over ",
        ledger.quote("count", f"/arms/{i}/moving/0/steps"),
        " steps: sites downwards, steps sideways; triangles mark ",
        ledger.quote("count", f"/arms/{i}/moving/0/moves", how="number of"),
        " moves.",
    )


def decisions(ledger: QuotedStudy) -> Table:
    """One row for each decision of every run."""
    rows: list[tuple[Phrase, ...]] = []
    keys: list[int | None] = []
    for i in moving(ledger):
        for run in ledger.items(f"/arms/{i}/moving"):
            for j in ledger.items(f"/arms/{i}/moving/{run}/decisions"):
                at = f"/arms/{i}/moving/{run}/decisions/{j}"
                rows.append((
                    (ledger.word(f"/arms/{i}/name"),),
                    (ledger.quote("count", f"/arms/{i}/moving/{run}/seed"),),
                    (ledger.quote("count", f"{at}/step"),),
                    (ledger.quote("count", f"{at}/moved"),),
                    (ledger.quote("count", f"{at}/parameters"),),
                    (ledger.quote("loss", f"{at}/loss_before"),),
                    (ledger.quote("loss", f"{at}/loss_after"),),
                    (ledger.word(f"{at}/note"),),
                ))  # fmt: skip
                keys.append(i)
    columns = ("Arm", "Seed", "Step", "Sites moved", "Parameters", "Loss before", "Loss after", "Evidence")
    return Table(columns=columns, rows=tuple(rows), keys=tuple(keys))


def moves(ledger: QuotedStudy) -> Table:
    """One row for each move of the runs that are shown as maps."""
    rows: list[tuple[Phrase, ...]] = []
    keys: list[int | None] = []
    for i in moving(ledger):
        for j in ledger.items(f"/arms/{i}/moving/0/moves"):
            at = f"/arms/{i}/moving/0/moves/{j}"
            rows.append((
                (ledger.word(f"{at}/path"),),
                (ledger.quote("count", f"{at}/step"),),
                (ledger.quote("count", f"{at}/before"), " → ", ledger.quote("count", f"{at}/after")),
                (ledger.quote("score", f"{at}/gain"),),
                (ledger.quote("percent", f"{at}/lost"),),
                (ledger.word(f"{at}/reason"),),
            ))  # fmt: skip
            keys.append(i)
    columns = ("Site", "Step", "Rank", "Expected gain", "Share of ΔW dropped", "Why")
    return Table(columns=columns, rows=tuple(rows), keys=tuple(keys))


def moves_map(ledger: QuotedStudy, i: int, theme: Theme) -> Any:
    """Sites downwards, steps sideways, colour for the rank, moves marked. None where nothing was decided."""
    if i not in moving(ledger):
        return None
    run = ledger.at(f"/arms/{i}/moving/0")
    began = {site["path"]: site["rank"] for site in ledger.at(f"/arms/{i}/plan/sites")}
    paths, edges, ranks = ranks_over_time(began, run["moves"], run["steps"])
    names = [path.removesuffix(".weight") for path in paths]
    figure = blank_figure(
        theme,
        x={"title": "Steps", "range": [0, run["steps"]], "showgrid": False},
        y={"type": "category", "autorange": "reversed", "showgrid": False, "tickfont": {"size": 9}},
        height=max(280, min(1400, 13 * len(paths) + 80)),
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
    )
    figure.add_heatmap(
        x=edges,
        y=names,
        z=ranks,
        zmin=0,
        zmax=max(1, max(max(row) for row in ranks)),
        colorscale=[(0, theme.grid), *([0.0001 + 0.9999 * at, colour] for at, colour in theme.ranks)],
        showscale=False,
        hovertemplate="%{y}: rank %{z}<extra></extra>",
    )
    figure.add_scatter(
        x=[move["step"] for move in run["moves"]],
        y=[move["path"].removesuffix(".weight") for move in run["moves"]],
        mode="markers",
        marker={
            "symbol": [
                "triangle-up" if move["after"] > move["before"] else "triangle-down" for move in run["moves"]
            ],
            "color": theme.text,
            "size": 7,
        },
        text=[f"{m['before']} → {m['after']}: {m['reason']}" for m in run["moves"]],
        hovertemplate="%{y}, step %{x}<br>rank %{text}<extra></extra>",
        showlegend=False,
    )
    return figure
