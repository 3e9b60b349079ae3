"""A difference of losses as steps of the reference: how much longer or shorter it would have had to train.

The reference was also trained for half and for one and a half times its steps T, on two of the evaluation seeds. Its
curve g(t) is the loss at t steps minus that at T, straight in log t between these points and beyond them. An arm whose
difference is d reaches what the reference would reach after g⁻¹(d) steps:

    saved = g⁻¹(d) − T        above 0: the arm saves steps; below 0: it costs steps

The interval takes the ends of the difference's interval through the curve of every seed and keeps the outermost. Beyond
an eighth and eight times T the curve is not believed: such an end is None.

>>> curve = {100: 0.2, 200: 0.0, 300: -0.1}
>>> steps_saved(-0.05, (-0.1, 0.0), 200, [curve, curve])
{'value': 44.9, 'low': 0.0, 'high': 100.0}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from loratlas import formats

FARTHEST = 8.0
"""Times T, and T over this."""

Saved = dict[str, float | None]


def steps_saved(
    value: float | None,
    interval: tuple[float | None, float | None],
    steps: int,
    curves: Sequence[Mapping[int, float]],
) -> Saved | None:
    """Steps of the reference that a difference is worth.

    Args:
        value: difference, arm minus reference, nats per token. interval: its ends.
        steps: T.
        curves: one for each seed: steps → loss minus that at T; 0 at T.

    Returns:
        ``value``, ``low`` and ``high`` in steps, None where the curve does not reach; None where there is no curve or
        no difference, and where the reference did not get better with more steps.
    """
    if value is None or not curves:
        return None
    lengths = sorted(set.intersection(*(set(curve) for curve in curves)) | {steps})
    mean = {t: sum(curve.get(t, 0.0) for curve in curves) / len(curves) for t in lengths}
    if len(lengths) < 2 or not _falls(mean):
        return None
    middle = _reached(value, steps, mean)
    low_end, high_end = interval
    if low_end is None or high_end is None:
        return {"value": _rounded(middle), "low": None, "high": None}
    falling = [dict(curve) | {steps: 0.0} for curve in curves]
    falling = [curve for curve in [*falling, mean] if _falls(curve)]
    # A higher loss is fewer steps: the upper end of the difference is the lower end of what is saved.
    low = [_reached(high_end, steps, curve) for curve in falling]
    high = [_reached(low_end, steps, curve) for curve in falling]
    return {
        "value": _rounded(middle),
        "low": None if None in low else _rounded(min(x for x in low if x is not None)),
        "high": None if None in high else _rounded(max(x for x in high if x is not None)),
    }


def _falls(curve: Mapping[int, float]) -> bool:
    losses = [curve[t] for t in sorted(curve)]
    return all(later < earlier for earlier, later in pairwise(losses))


def _reached(difference: float, steps: int, curve: Mapping[int, float]) -> float | None:
    """Steps saved at a difference; None beyond what is believed of the curve."""
    points = sorted(curve.items())
    pairs = list(pairwise(points))
    # The piece that holds the difference, or the outer one.
    piece = next((pair for pair in pairs if pair[1][1] <= difference), pairs[-1])
    (t0, y0), (t1, y1) = piece
    log = math.log(t0) + (y0 - difference) / (y0 - y1) * math.log(t1 / t0)
    if abs(log - math.log(steps)) > math.log(FARTHEST) + 1e-9:
        return None
    return math.exp(log) - steps


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1) + 0.0


def sentence(saved: Mapping[str, float | None] | None, versus: str, steps: int) -> str:
    """A clause for a finding; "" where nothing is known.

    >>> sentence({"value": 45.0, "low": 0.0, "high": 100.0}, "full", 200)
    "worth 45 of full's 200 steps (0 to 100 saved)"
    """
    if not saved or saved["value"] is None:
        return ""
    low, high = ("unknown" if (end := saved[name]) is None else _whole(end) for name in ("low", "high"))
    return f"worth {_whole(saved['value'])} of {versus}'s {steps} steps ({low} to {high} saved)"


def _whole(value: float) -> str:
    return formats.whole(value).removeprefix("+")
