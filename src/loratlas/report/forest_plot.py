"""Small interval drawings beside the findings: one SVG each, all on one scale, no script needed.

What is drawn, from back to front: the band of ±δ, in which arms count as equivalent; the line at 0; two ticks
at the difference that could have been found; the interval; the difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from loratlas.report.sentences import Interval

WIDTH, HEIGHT, AXIS = 360, 46, 18
_MARGIN = 10


def scale(intervals: Sequence[Interval]) -> float:
    """Half the width of the common axis, nats per token: everything fits, 0 stays in the middle.

    >>> round(scale([Interval(low=-0.04, value=-0.03, high=-0.02, delta=0.01, detectable=0.015)]), 6)
    0.044
    """
    reach = [0.0]
    for interval in intervals:
        for value in (interval.low, interval.value, interval.high, interval.delta, interval.detectable):
            if value is not None:
                reach.append(abs(value))
    return 1.1 * max(reach) or 1.0


def step(half: float) -> float:
    """Distance between the marks of an axis from −half to +half: 1, 2 or 5 times a power of ten.

    >>> step(0.044), step(1.1)
    (0.02, 0.5)
    """
    rough = half / 2
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * n for n in (5, 2, 1) if power * n <= rough * 1.0001)


def draw(interval: Interval, *, half: float, verdict: str, label: str) -> str:
    """SVG text of one finding.

    Args:
        interval: the numbers.
        half: half the width of the axis, from :func:`scale`.
        verdict: names the CSS class, so that the page's colours apply.
        label: text alternative, already escaped.
    """

    def x(value: float) -> str:
        inner = WIDTH - 2 * _MARGIN
        return f"{_MARGIN + inner * (value / half + 1) / 2:.1f}"

    middle, bottom = HEIGHT / 2, HEIGHT
    box = f"0 0 {WIDTH} {HEIGHT + AXIS}"
    parts = [f'<svg class="forest {verdict}" viewBox="{box}" role="img" aria-label="{label}">']
    if interval.delta is not None:
        left, right = x(-interval.delta), x(interval.delta)
        width = float(right) - float(left)
        parts.append(f'<rect class="band" x="{left}" width="{width:.1f}" y="0" height="{bottom}"/>')
    parts.append(f'<line class="axis" x1="{x(-half)}" x2="{x(half)}" y1="{bottom}" y2="{bottom}"/>')
    every = step(half)
    for n in range(-math.floor(half / every), math.floor(half / every) + 1):
        place = x(n * every)
        text = "0" if n == 0 else f"{'−' if n < 0 else '+'}{abs(n) * every:g}"
        parts.append(f'<line class="axis" x1="{place}" x2="{place}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text class="tick" x="{place}" y="{bottom + 15}">{text}</text>')
    parts.append(f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="0" y2="{bottom}"/>')
    if interval.detectable is not None:
        for side in (-interval.detectable, interval.detectable):
            parts.append(f'<path class="detectable" d="M{x(side)} {bottom - 12}v12"/>')
    if interval.low is not None and interval.high is not None:
        low, high = x(interval.low), x(interval.high)
        parts.append(
            f'<path class="ci" d="M{low} {middle}H{high}M{low} {middle - 5}v10M{high} {middle - 5}v10"/>'
        )
    if interval.value is not None:
        parts.append(f'<circle class="point" cx="{x(interval.value)}" cy="{middle}" r="5.5"/>')
    parts.append("</svg>")
    return "".join(parts)
