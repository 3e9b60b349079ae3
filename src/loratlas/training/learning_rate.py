"""The learning rate of a run that names none: by the width of its base and by its batch.

    lr = 0.005 · (576 / width) · min(b / 16, √(b / 16)),   rounded to 1, 2 or 5 times a power of ten,
                                                            from 2e-5 to 1e-2

with b the examples per step. It is anchored at SmolLM2-135M (width 576) on nl2bash: with 16 examples per step and 60
steps, 0.01, 0.005 and 0.002 ended at a loss of 1.683, 1.701 and 1.800. Wider bases want lower rates, about in inverse
proportion. Small batches are noisier: below 16 examples the rate falls in proportion to them (1e-3 with 2 examples left
a chat model writing noise on other prompts), above with their root. It is a start, for adapters whose scale α/r is 2;
a study tunes the rate.

>>> default_rate(width=576, batch_size=16).rate, default_rate(width=4096, batch_size=16).rate
(0.005, 0.0005)
>>> default_rate(width=576, batch_size=2).rate, default_rate(width=256, batch_size=16).rate
(0.0005, 0.01)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ANCHOR_RATE, ANCHOR_WIDTH, ANCHOR_BATCH = 0.005, 576, 16
LOWEST, HIGHEST = 2e-5, 1e-2

FACTOR = 1.6
"""Between neighbouring rates: 2.5 was shown to flip which of two placements is better."""

REACH = 4
"""Neighbours on each side of a rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenRate:
    """A learning rate and why it was chosen.

    Args:
        rate: for AdamW, at scale α/r = 2.
        reason: for people, as it follows "chosen".
    """

    rate: float
    reason: str


def default_rate(*, width: int, batch_size: int) -> ChosenRate:
    """Choose a rate.

    Args:
        width: of the residual stream of the base.
        batch_size: examples per step.
    """
    share = max(batch_size, 1) / ANCHOR_BATCH
    wanted = ANCHOR_RATE * ANCHOR_WIDTH / max(width, 1) * min(share, math.sqrt(share))
    rate = _rounded(min(max(wanted, LOWEST), HIGHEST))
    examples = "1 example" if batch_size == 1 else f"{batch_size} examples"
    return ChosenRate(
        rate=rate,
        reason=f"for a base of width {width:,} with {examples} per step",
    )


def neighbours(rate: float) -> tuple[float, ...]:
    """A rate with `REACH` lower and as many higher ones, `FACTOR` apart, to three digits.

    >>> neighbours(0.01)
    (0.00153, 0.00244, 0.00391, 0.00625, 0.01, 0.016, 0.0256, 0.041, 0.0655)
    """
    return tuple(float(f"{rate * FACTOR**step:.3g}") for step in range(-REACH, REACH + 1))


def _rounded(rate: float) -> float:
    """The nearest of 1, 2 and 5 times a power of ten, by ratio.

    >>> _rounded(0.0007), _rounded(0.0031)
    (0.0005, 0.002)
    """
    power = math.floor(math.log10(rate))
    candidates = [step * 10.0**exponent for exponent in (power, power + 1) for step in (1, 2, 5)]
    nearest = min(candidates, key=lambda value: abs(math.log(value / rate)))
    return float(f"{nearest:.6g}")
