"""Verdicts: what the differences of a study allow to say, and what they do not.

An arm is compared with one declared reference. With m comparisons, the interval at 1 − 0.05 / m decides:

    inside ±δ                                    equivalent
    else, without 0                              better (lower loss) or worse
    else                                         undetermined

and whatever the interval says, fewer than five evaluation seeds, a diverged run, or a best learning rate at
the edge of the tried ones make the finding undetermined: such a comparison did not meet the protocol.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loratlas.formats import loss, percent, signed
from loratlas.study.results.estimator import Estimate
from loratlas.study.results.power import holm

HEADLINES = {
    "better": "{arm} is better than {versus} by {size} {per}",
    "worse": "{arm} is worse than {versus} by {size} {per}",
    "equivalent": "{arm} and {versus} are equivalent within ±{delta} {per}",
    "undetermined": "{arm} against {versus} is undetermined",
}
"""Verdict → the finding in one clause; the terminal, the page and the JSON all fill these."""

FEWEST_SEEDS = 5
ALPHA = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One arm against the reference.

    Args:
        arm, versus: names of the two arms.
        difference: token mean of the arm minus that of the reference, nats per token; below 0 is better.
        ci: interval at ``level``, which decides the verdict.
        level: 1 − 0.05 / m.
        p: two-sided, not adjusted. p_holm: adjusted over the study's comparisons.
        verdict: "better", "worse", "equivalent" or "undetermined".
        detectable: the true difference that this comparison would have found with 80 % power at that level.
        df: degrees of freedom. seeds, examples: how many of each stand behind the difference.
        reason: why the verdict is what it is, in a few words.
        statement: the finding in words, alone. scope: what it is about: seeds, examples, base, task, budget; findings
            of one study share it where all their runs finished. caveat: how the budgets compare.
    """

    arm: str
    versus: str
    difference: float | None
    ci: tuple[float | None, float | None]
    level: float
    p: float | None
    p_holm: float | None
    verdict: str
    detectable: float | None
    df: float | None
    seeds: int
    examples: int
    reason: str
    statement: str
    scope: str
    caveat: str

    @property
    def sentence(self) -> str:
        """The finding in words, with what it is about."""
        scope = f", {self.scope}" if self.scope else ""
        return f"{self.statement}{scope}.{f' {self.caveat}' if self.caveat else ''}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"ci": list(self.ci), "sentence": self.sentence}


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What a verdict is made from.

    Args:
        arm: name of the arm.
        estimate: the paired difference arm − reference, or None where fewer than one pair of runs finished.
        problems: what in the protocol was not met, in words; any of them makes the finding undetermined.
        caveat: a clause for the sentence where the arms did not spend the same, "" where they did.
    """

    arm: str
    estimate: Estimate | None
    problems: tuple[str, ...] = ()
    caveat: str = ""


def decide(interval: tuple[float, float], *, delta: float) -> str:
    """The verdict of an interval alone.

    >>> [decide(i, delta=0.01) for i in ((-0.004, 0.006), (-0.09, -0.02), (-0.09, 0.02))]
    ['equivalent', 'better', 'undetermined']
    """
    low, high = interval
    if math.isnan(low) or math.isnan(high):
        return "undetermined"
    if -delta < low and high < delta:
        return "equivalent"
    if high < 0:
        return "better"
    return "worse" if low > 0 else "undetermined"


def judge(
    comparisons: Sequence[Comparison], *, versus: str, delta: float, reach: str, per: str = "token"
) -> list[Finding]:
    """Verdicts of all comparisons of one study, with Holm-adjusted p beside the intervals.

    Args:
        comparisons: one for each arm but the reference.
        versus: name of the reference.
        delta: margin of equivalence, nats per token.
        reach: what the findings are about, e.g. "on facts-300, with llama-mini, 200 steps of 16 rows".
        per: what the loss is told per, "token" or "row".
    """
    m = max(1, len(comparisons))
    level = 1 - ALPHA / m
    adjusted = holm([math.nan if c.estimate is None else c.estimate.p for c in comparisons])
    return [
        _finding(c, versus=versus, delta=delta, reach=reach, level=level, p_holm=p, per=per)
        for c, p in zip(comparisons, adjusted, strict=True)
    ]


def _finding(
    comparison: Comparison,
    *,
    versus: str,
    delta: float,
    reach: str,
    level: float,
    p_holm: float,
    per: str,
) -> Finding:
    estimate = comparison.estimate
    if estimate is None:
        reason = "; ".join(comparison.problems) or "no pair of runs finished"
        return Finding(
            arm=comparison.arm,
            versus=versus,
            difference=None,
            ci=(None, None),
            level=level,
            p=None,
            p_holm=None,
            verdict="undetermined",
            detectable=None,
            df=None,
            seeds=0,
            examples=0,
            reason=reason,
            statement=f"{HEADLINES['undetermined'].format(arm=comparison.arm, versus=versus)}: {reason}",
            scope="",
            caveat="",
        )
    interval = estimate.interval(level)
    problems = list(comparison.problems)
    if estimate.seeds < FEWEST_SEEDS:
        problems.append(f"only {estimate.seeds} evaluation seeds, {FEWEST_SEEDS} are needed for a verdict")
    verdict = "undetermined" if problems else decide(interval, delta=delta)
    smallest = estimate.detectable(alpha=1 - level)
    reason = "; ".join(problems) or _REASONS[verdict].format(
        level=percent(level), delta=f"{delta:g}", per=per
    )
    return Finding(
        arm=comparison.arm,
        versus=versus,
        difference=_known(estimate.value),
        ci=(_known(interval[0]), _known(interval[1])),
        level=level,
        p=_known(estimate.p),
        p_holm=_known(p_holm),
        verdict=verdict,
        detectable=_known(smallest),
        df=_known(estimate.df),
        seeds=estimate.seeds,
        examples=estimate.examples,
        reason=reason,
        statement=_statement(
            comparison,
            estimate,
            level=level,
            versus=versus,
            verdict=verdict,
            reason=reason,
            delta=delta,
            per=per,
        ),
        scope=f"on {estimate.seeds} fresh seeds × {estimate.examples:,} examples, {reach}",
        caveat=comparison.caveat,
    )


_REASONS = {
    "equivalent": "the {level} interval lies inside ±{delta} nats per {per}",
    "better": "the {level} interval lies below 0",
    "worse": "the {level} interval lies above 0",
    "undetermined": "the {level} interval holds 0 and reaches beyond ±{delta} nats per {per}",
}


def _statement(
    comparison: Comparison,
    estimate: Estimate,
    *,
    level: float,
    versus: str,
    verdict: str,
    reason: str,
    delta: float,
    per: str,
) -> str:
    low, high = estimate.interval(level)
    between = f"{percent(level)} interval {signed(low)} to {signed(high)}"
    said = HEADLINES[verdict].format(
        arm=comparison.arm,
        versus=versus,
        size=loss(abs(estimate.value)),
        delta=f"{delta:g}",
        per=f"nats per {per}",
    )
    if verdict in ("better", "worse"):
        said += f" ({between})"
    elif verdict == "equivalent":
        said += f" (difference {signed(estimate.value)}, {between})"
    else:
        said += f": {reason} (difference {signed(estimate.value)} nats per {per}"
        if not math.isnan(estimate.error):
            smallest = loss(estimate.detectable(alpha=1 - level))
            said += f", {between}; a difference of {smallest} would have been found with 80 % power"
        said += ")"
    return said


def _known(value: float) -> float | None:
    """None for NaN and infinity: JSON knows neither."""
    return float(value) if math.isfinite(value) else None


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points that no other point dominates, in order of the first coordinate.

    Both coordinates are better when smaller. A point is dominated where another is no worse in both and
    better in one; equal points stay together.

    >>> pareto({"small": (1, 3.0), "large": (4, 2.5), "wasteful": (5, 2.9)})
    ['small', 'large']
    """
    kept = [
        name
        for name, (x, y) in points.items()
        if not any(u <= x and v <= y and (u < x or v < y) for u, v in points.values())
    ]
    return sorted(kept, key=lambda name: points[name])
