"""Small interval drawings beside the findings: one SVG each, all on one scale, no script needed.

What is drawn, from back to front: the band of ±δ, in which arms count as equivalent; the line at 0; two ticks
at the difference that could have been found; the interval; the difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from loratlas.formats import MINUS
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """Where everything of one finding's drawing stands, in the units of the SVG, as text.

    Args:
        width, height: of the drawing; bottom, middle: of the axis and of the interval, from above.
        band: left end and width of ±δ; ends, point: of the interval and of the difference; None where unknown.
        axis: its two ends; ticks: each with its text; zero: the line at 0; detectable: both sides of it, or none.
    """

    width: int
    height: int
    bottom: int
    middle: float
    axis: tuple[str, str]
    ticks: tuple[tuple[str, str], ...]
    zero: str
    band: tuple[str, str] | None
    detectable: tuple[str, ...]
    ends: tuple[str, str] | None
    point: str | None


def drawing(interval: Interval, *, half: float) -> Drawing:
    """Lay one finding out.

    Args:
        interval: the numbers.
        half: half the width of the axis, from :func:`scale`.
    """

    def x(value: float) -> str:
        inner = WIDTH - 2 * _MARGIN
        return f"{_MARGIN + inner * (value / half + 1) / 2:.1f}"

    every = step(half)
    ticks = range(-math.floor(half / every), math.floor(half / every) + 1)
    delta, detectable = interval.delta, interval.detectable
    known = interval.low is not None and interval.high is not None
    return Drawing(
        width=WIDTH,
        height=HEIGHT + AXIS,
        bottom=HEIGHT,
        middle=HEIGHT / 2,
        axis=(x(-half), x(half)),
        ticks=tuple((x(n * every), _tick(n, every)) for n in ticks),
        zero=x(0),
        band=None if delta is None else (x(-delta), f"{float(x(delta)) - float(x(-delta)):.1f}"),
        detectable=() if detectable is None else (x(-detectable), x(detectable)),
        ends=(x(interval.low or 0.0), x(interval.high or 0.0)) if known else None,
        point=None if interval.value is None else x(interval.value),
    )


def _tick(n: int, every: float) -> str:
    return "0" if n == 0 else f"{MINUS if n < 0 else '+'}{abs(n) * every:g}"
