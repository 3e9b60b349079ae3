"""Figures as SVG: differences from all layers, with intervals, by steps and at one rate; loss against parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from loratlas.claims.comparisons import Contrast, rank_curves
from loratlas.claims.study_extract import base_name

WIDTH, ROW, LEFT, RIGHT, TOP = 760, 22, 250, 24, 46
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #1f2328; }
  .small { font-size: 11px; fill: #59636e; }
  .grid { stroke: #d1d9e0; stroke-width: 1; }
  .zero { stroke: #59636e; stroke-width: 1.5; }
  .attention { stroke: #b35900; fill: #b35900; }
  .feedforward { stroke: #0969da; fill: #0969da; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; } .small { fill: #9198a1; }
    .grid { stroke: #3d444d; } .zero { stroke: #9198a1; }
    .attention { stroke: #f0883e; fill: #f0883e; } .feedforward { stroke: #58a6ff; fill: #58a6ff; }
  }
"""
CUT = 0.4
"""Differences above are drawn at the upper edge, with their number."""

WORDS = {"attention": "attention alone", "feedforward": "feed-forward alone"}


@dataclass(frozen=True, slots=True)
class Scale:
    """Numbers to places on a line.

    Args:
        low, high: numbers at the ends. start, end: places of these.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)


def ticks(low: float, high: float, most: int = 8) -> list[float]:
    """Round numbers between two ends.

    >>> ticks(-0.13, 0.33)
    [-0.1, 0.0, 0.1, 0.2, 0.3]
    """
    raw = (high - low) / most
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    first = math.ceil(low / step)
    return [round(k * step, 10) for k in range(first, math.floor(high / step) + 1)]


def forest(found: Sequence[Contrast]) -> str:
    """Every half against all layers, one line a study."""
    shown = sorted(
        (one for one in found if one.finding["ci"] and None not in one.finding["ci"]),
        key=lambda one: (one.study["base"], one.study["task"], one.study["name"], one.half),
    )
    ends = [end for one in shown for end in one.finding["ci"]]
    margin = 0.05 * (max(ends) - min(ends))
    x = Scale(min(*ends, 0.0) - margin, max(*ends, 0.0) + margin, LEFT, WIDTH - RIGHT)
    height = TOP + ROW * len(shown) + 34
    body = [_legend("difference from all layers at equal parameters, nats per token (left is better)")]
    for tick in ticks(x.low, x.high):
        kind = "zero" if tick == 0 else "grid"
        body.append(f'<line class="{kind}" x1="{x(tick)}" x2="{x(tick)}" y1="{TOP}" y2="{height - 30}"/>')
        body.append(
            f'<text class="small" x="{x(tick)}" y="{height - 14}" text-anchor="middle">{_tick(tick)}</text>'
        )
    for index, one in enumerate(shown):
        y = TOP + ROW * index + ROW / 2
        low, high = one.finding["ci"]
        name = f"{one.study['base']} {one.study['task']}, rank {rank_of(one)}, {one.study['steps']} steps"
        if index == 0 or one.study["name"] != shown[index - 1].study["name"]:
            body.append(f'<text x="12" y="{y + 4}">{escape(name)}</text>')
        body.append(_dot(x(one.finding["difference"]), x(low), x(high), y, one.half))
    return _svg(height, body)


def fresh_points(picture: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Of a picture of difference against steps: feed-forward alone, on seeds that chose no rate, by steps."""
    return [p for p in picture["points"] if p["fresh"] and p["arm"] == "feedforward"]


def case_of(picture: Mapping[str, Any]) -> str:
    """Task and budget of a picture.

    >>> case_of({"task": "nl2bash", "budget": "like=all:2"})
    'nl2bash all:2'
    """
    return f"{picture['task']} {picture['budget'].removeprefix('like=')}"


def against_steps(picture: Mapping[str, Any]) -> str:
    """Feed-forward alone against all layers on a real base, as runs grow longer."""
    points = fresh_points(picture)
    height = TOP + 220
    steps = [p["steps"] for p in points]
    x = Scale(math.log(steps[0]), math.log(steps[-1]), 90, WIDTH - 60)
    ends = [end for p in points for end in (p["minus_all"]["low"], p["minus_all"]["high"])]
    y = Scale(min(*ends, 0.0) - 0.005, max(*ends, 0.0) + 0.005, height - 44, TOP)
    title = (
        f"feed-forward alone − all layers, {case_of(picture)} on {base_name(picture['base'])}, nats per token"
    )
    body = [f'<text x="12" y="20">{escape(title)}</text>']
    body += _levels(y, _tick)
    path = " ".join(f"{x(math.log(p['steps']))},{y(p['minus_all']['value'])}" for p in points)
    body.append(f'<polyline class="feedforward" style="fill:none;stroke-width:2" points="{path}"/>')
    for p in points:
        at, result = x(math.log(p["steps"])), p["minus_all"]
        body.append(
            f'<line class="feedforward" x1="{at}" x2="{at}" y1="{y(result["low"])}" y2="{y(result["high"])}"/>'
            f'<circle class="feedforward" cx="{at}" cy="{y(result["value"])}" r="4"/>'
            f'<text class="small" x="{at}" y="{height - 20}" text-anchor="middle">{p["steps"]}</text>'
        )
    body.append(f'<text class="small" x="{WIDTH / 2}" y="{height - 4}" text-anchor="middle">steps</text>')
    return _svg(height, body)


def rank_of(one: Contrast) -> str:
    """The rank of all layers in a study, whose parameters the halves were given."""
    from loratlas.placement.language import parse

    reference = next(arm for arm in one.study["arms"] if arm["name"] == one.study["reference"])
    return str(parse(reference["placement"]).terms[0].rank or "")


def _levels(y: Scale, said: Callable[[float], str]) -> list[str]:
    """Lines across at round numbers, each with its number."""
    lines = []
    for tick in ticks(y.low, y.high, 6):
        kind = "zero" if tick == 0 else "grid"
        lines.append(f'<line class="{kind}" x1="70" x2="{WIDTH - RIGHT}" y1="{y(tick)}" y2="{y(tick)}"/>')
        lines.append(f'<text class="small" x="60" y="{y(tick) + 4}" text-anchor="end">{said(tick)}</text>')
    return lines


def _tick(value: float) -> str:
    return f"{value:+g}" if value else "0"


def shared_rates(study: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Half → (rate, loss − loss of all layers at this very rate), over the rates that all three were tuned at and at
    which all layers keep at least half of what they gain over the base."""
    from loratlas.claims.comparisons import HALVES, selector

    arms = {
        "all" if arm.get("all_layers") else selector(arm["placement"]): arm for arm in reversed(study["arms"])
    }
    if not {"all", *HALVES} <= arms.keys():
        return {}
    everywhere = arms["all"]["tuning"]
    if not everywhere or study["base_nll"] is None:
        return {}
    worst = (study["base_nll"] + min(everywhere.values())) / 2
    rates = [
        rate
        for rate, loss in everywhere.items()
        if loss <= worst and all(rate in arms[half]["tuning"] for half in HALVES)
    ]
    return {
        half: [(float(rate), arms[half]["tuning"][rate] - everywhere[rate]) for rate in rates]
        for half in HALVES
    }


def at_one_rate(study: Mapping[str, Any]) -> str:
    """What a comparison at one rate for all would have found, rate by rate."""
    curves = shared_rates(study)
    height = TOP + 240
    rates = [rate for rate, _ in curves["attention"]]
    x = Scale(math.log(rates[0]), math.log(rates[-1]), 90, WIDTH - 60)
    values = [value for curve in curves.values() for _, value in curve]
    y = Scale(min(*values, 0.0) - 0.02, min(max(values), CUT) + 0.02, height - 44, TOP)
    title = (
        f"difference from all layers at one shared rate, {study['task']} on {study['base']}, nats per token"
    )
    body = [_legend(title)]
    body += _levels(y, _tick)
    for half, curve in curves.items():
        shown = [(x(math.log(rate)), y(min(value, CUT + 0.02)), value) for rate, value in curve]
        path = " ".join(f"{at},{up}" for at, up, _ in shown)
        body.append(f'<polyline class="{half}" style="fill:none;stroke-width:2" points="{path}"/>')
        for at, up, value in shown:
            body.append(f'<circle class="{half}" cx="{at}" cy="{up}" r="4"/>')
            if value > CUT + 0.02:
                body.append(
                    f'<text class="small" x="{at - 8}" y="{up + 14}" text-anchor="end">{value:+.2f}</text>'
                )
    for rate in rates:
        body.append(
            f'<text class="small" x="{x(math.log(rate))}" y="{height - 20}" text-anchor="middle">{rate:g}</text>'
        )
    body.append(
        f'<text class="small" x="{WIDTH / 2}" y="{height - 4}" text-anchor="middle">learning rate</text>'
    )
    return _svg(height, body)


def against_parameters(study: Mapping[str, Any]) -> str:
    """Loss of either half against its parameters, rank by rank, each at its own learning rate."""
    curves = rank_curves(study)
    height = TOP + 240
    counts = [math.log(point[1]) for curve in curves for point in curve.points]
    x = Scale(min(counts), max(counts), 90, WIDTH - 60)
    losses = [point[2] for curve in curves for point in curve.points]
    y = Scale(min(losses) - 0.05, max(losses) + 0.05, height - 44, TOP)
    body = [
        _legend(
            f"loss against parameters, {study['task']} on {study['base']}, nats per token; numbers are ranks"
        )
    ]
    body += _levels(y, "{:g}".format)
    for curve in curves:
        shown = [(x(math.log(trainable)), y(loss), rank) for rank, trainable, loss, _ in curve.points]
        path = " ".join(f"{at},{up}" for at, up, _ in shown)
        body.append(f'<polyline class="{curve.half}" style="fill:none;stroke-width:2" points="{path}"/>')
        for at, up, rank in shown:
            body.append(
                f'<circle class="{curve.half}" cx="{at}" cy="{up}" r="4"/>'
                f'<text class="small" x="{at}" y="{up - 9}" text-anchor="middle">{rank}</text>'
            )
    for tick in (factor * 10**power for power in range(9) for factor in (1, 2, 5)):
        if x.low <= math.log(tick) <= x.high:
            at = x(math.log(tick))
            body.append(
                f'<text class="small" x="{at}" y="{height - 20}" text-anchor="middle">{tick:,}</text>'
            )
    body.append(
        f'<text class="small" x="{WIDTH / 2}" y="{height - 4}" text-anchor="middle">trainable parameters</text>'
    )
    return _svg(height, body)


def _dot(middle: float, low: float, high: float, y: float, kind: str) -> str:
    return (
        f'<line class="{kind}" x1="{low}" x2="{high}" y1="{y}" y2="{y}" stroke-width="2"/>'
        f'<circle class="{kind}" cx="{middle}" cy="{y}" r="4"/>'
    )


def _legend(title: str) -> str:
    marks = "".join(
        f'<circle class="{kind}" cx="{LEFT + 10 + 160 * index}" cy="34" r="4"/>'
        f'<text x="{LEFT + 20 + 160 * index}" y="38">{word}</text>'
        for index, (kind, word) in enumerate(WORDS.items())
    )
    return f'<text x="12" y="16">{escape(title)}</text>{marks}'


def _svg(height: float, body: Sequence[str]) -> str:
    lines = "\n".join(body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img">\n'
        f"<style>{STYLE}</style>\n{lines}\n</svg>\n"
    )
