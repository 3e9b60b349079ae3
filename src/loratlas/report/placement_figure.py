"""Where a run's adapters were, step by step: sites down, steps across, rank as colour, moves marked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def ranks_over_time(
    final: Mapping[str, int], moves: Sequence[Mapping[str, Any]], steps: int
) -> tuple[list[str], list[int], list[list[int]]]:
    """The ranks of every site between decisions.

    Args:
        final: path → rank at the end; sites without an adapter may be left out.
        moves: as a run keeps them: step, path, before, after.
        steps: of the run.

    Returns:
        Paths in the model's order; steps at which a stretch begins, and the end; ranks, a row for each path with a
        number for each stretch.

    Example:
        >>> ranks_over_time({"1.q": 4}, [{"step": 10, "path": "0.q", "before": 2, "after": 0},
        ...                              {"step": 10, "path": "1.q", "before": 2, "after": 4}], 100)
        (['0.q', '1.q'], [0, 10, 100], [[2, 0], [2, 4]])
    """
    paths = sorted({*final, *(move["path"] for move in moves)}, key=_in_order)
    begins = [0, *sorted({move["step"] for move in moves})]
    rows = []
    for path in paths:
        own = [move for move in moves if move["path"] == path]
        row = [own[0]["before"] if own else final[path]]
        for step in begins[1:]:
            now = [move["after"] for move in own if move["step"] == step]
            row.append(now[0] if now else row[-1])
        rows.append(row)
    return paths, [*begins, steps], rows


def _in_order(path: str) -> list[Any]:
    """Numbers in names as numbers: layer 10 behind layer 9."""
    return [(0, int(word), "") if word.isdigit() else (1, 0, word) for word in re.split(r"(\d+)", path)]


def placement_figure(final: Mapping[str, int], moves: Sequence[Mapping[str, Any]], steps: int) -> Figure:
    """The figure of `ranks_over_time`, with what each move gained under the pointer.

    Args:
        final, moves, steps: as there; moves with their reason, price, gain and losses.
    """
    from plotly.graph_objects import Figure, Heatmap, Scatter

    paths, edges, rows = ranks_over_time(final, moves, steps)
    figure = Figure(
        layout={
            "xaxis": {"title": "steps", "range": [0, steps]},
            "yaxis": {"autorange": "reversed", "type": "category"},
            "height": max(320, 14 * len(paths) + 120),
        }
    )
    figure.add_trace(
        Heatmap(x=edges, y=paths, z=rows, zmin=0, colorscale="Blues", colorbar={"title": "rank"}, name="rank")
    )
    figure.add_trace(
        Scatter(
            x=[move["step"] for move in moves],
            y=[move["path"] for move in moves],
            mode="markers",
            name="moves",
            marker={
                "symbol": ["triangle-up" if m["after"] > m["before"] else "triangle-down" for m in moves],
                "color": "#b3261e",
                "size": 8,
            },
            text=[_words(move) for move in moves],
            hoverinfo="text",
        )
    )
    return figure


def _words(move: Mapping[str, Any]) -> str:
    """A move in words."""
    words = (
        f"{move['path']}: rank {move['before']} → {move['after']} after step {move['step']}; {move['reason']}"
    )
    if move.get("gain") is not None:
        words += f"; expected gain {move['gain']:.3g}"
    if move.get("loss_before") is not None:
        words += f"; loss {move['loss_before']:.4f} → {move['loss_after']:.4f}"
    return words
