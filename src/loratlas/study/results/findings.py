"""Verdicts: what the differences of a study allow to say, and what they do not.

An arm is compared with one declared reference. With m comparisons, the interval at 1 − 0.05 / m decides:

    inside ±δ                                    equivalent
    else, without 0                              better (lower loss) or worse
    else                                         undetermined

p is that of the same test times m, so that it is below 0.05 exactly where the interval leaves out 0. Whatever the
interval says, fewer than five evaluation seeds, a diverged run, or a best learning rate at
the edge of the tried ones make the finding undetermined: such a comparison did not meet the protocol.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loratlas.formats import loss, percent, signed
from loratlas.study.results.came_apart import CameApart
from loratlas.study.results.estimator import Estimate
from loratlas.study.results.power import bonferroni
from loratlas.study.results.steps_saved import sentence as worth_in_steps
from loratlas.study.results.steps_saved import steps_saved

HEADLINES = {
    "better": "{arm} is better than {versus} by {size} {per}",
    "worse": "{arm} is worse than {versus} by {size} {per}",
    "equivalent": "{arm} and {versus} are equivalent within ±{delta} {per}",
    "undetermined": "{arm} against {versus} is undetermined",
}
"""Verdict → the finding in one clause; the terminal, the page and the JSON all fill these."""

HOLDS_ZERO = " interval holds 0 "
"""Part of the reason of a finding that nothing but its interval leaves undetermined."""

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
        p: two-sided, not adjusted.
        p_adjusted: p times m, at most 1. Below 0.05 exactly where ``ci`` leaves out 0.
        p_holm: the same; the name of the first edition, whose correction could contradict the interval.
        verdict: "better", "worse", "equivalent" or "undetermined".
        detectable: the true difference that this comparison would have found with 80 % power at that level.
        df: degrees of freedom. seeds, examples: how many of each stand behind the difference.
        units: groups of examples that vary independently of each other (prompts, documents).
        rate_error: standard error that the choice of learning rates adds, nats per token; part of ``ci``.
        steps_saved: the difference in steps of the reference, see `loratlas.study.results.steps_saved`.
        equal_compute: the difference from a reference that was also trained the steps of the scan; None: no scan.
        came_apart: runs of both arms that came apart, which the interval counts.
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
    p_adjusted: float | None
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
    units: int | None = None
    rate_error: float | None = None
    steps_saved: dict[str, float | None] | None = None
    equal_compute: dict[str, Any] | None = None
    came_apart: tuple[dict[str, Any], ...] = ()

    @property
    def sentence(self) -> str:
        """The finding in words, with what it is about."""
        scope = f", {self.scope}" if self.scope else ""
        return f"{self.statement}{scope}.{f' {self.caveat}' if self.caveat else ''}"

    def to_json(self) -> dict[str, Any]:
        lists = {"ci": list(self.ci), "came_apart": list(self.came_apart)}
        return asdict(self) | lists | {"sentence": self.sentence}


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What a verdict is made from.

    Args:
        arm: name of the arm.
        estimate: the paired difference arm − reference, or None where fewer than one pair of runs finished.
        problems: what in the protocol was not met, in words; any of them makes the finding undetermined.
        caveat: a clause for the sentence where the arms did not spend the same, "" where they did.
        steps, curves: the reference's steps and its loss at others, by seed; see `steps_saved`.
        equal_compute: the difference from the reference that was trained ``extra_steps`` more, or None.
        came_apart: runs of either arm.
    """

    arm: str
    estimate: Estimate | None
    problems: tuple[str, ...] = ()
    caveat: str = ""
    steps: int = 0
    curves: tuple[Mapping[int, float], ...] = ()
    equal_compute: Estimate | None = None
    extra_steps: int = 0
    came_apart: tuple[CameApart, ...] = ()


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
    """Verdicts of all comparisons of one study; intervals and p are corrected alike.

    Args:
        comparisons: one for each arm but the reference.
        versus: name of the reference.
        delta: margin of equivalence, nats per token.
        reach: what the findings are about, e.g. "on facts-300, with llama-mini, 200 steps of 16 rows".
        per: what the loss is told per, "token" or "row".
    """
    m = max(1, len(comparisons))
    level = 1 - ALPHA / m
    adjusted = bonferroni([math.nan if c.estimate is None else c.estimate.p for c in comparisons])
    return [
        _finding(c, versus=versus, delta=delta, reach=reach, level=level, p_adjusted=p, per=per)
        for c, p in zip(comparisons, adjusted, strict=True)
    ]


def _finding(
    comparison: Comparison,
    *,
    versus: str,
    delta: float,
    reach: str,
    level: float,
    p_adjusted: float,
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
            p_adjusted=None,
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
    saved = steps_saved(
        _known(estimate.value),
        (_known(interval[0]), _known(interval[1])),
        comparison.steps,
        comparison.curves,
    )
    equal = _equal_compute(comparison, level=level, delta=delta, usable=not problems)
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
        p_adjusted=_known(p_adjusted),
        p_holm=_known(p_adjusted),
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
            saved=saved,
        ),
        scope=f"on {estimate.seeds} fresh seeds × {estimate.examples:,} examples{_units(estimate)}, {reach}",
        caveat=" ".join(
            [comparison.caveat, *(f"{_capital(run.sentence)}." for run in comparison.came_apart)]
        ).strip(),
        units=estimate.units,
        rate_error=_known(math.sqrt(estimate.rate_share)),
        steps_saved=saved,
        equal_compute=equal,
        came_apart=tuple(run.to_json() for run in comparison.came_apart),
    )


def _equal_compute(
    comparison: Comparison, *, level: float, delta: float, usable: bool
) -> dict[str, Any] | None:
    equal = comparison.equal_compute
    if equal is None:
        return None
    low, high = equal.interval(level)
    enough = usable and equal.seeds >= FEWEST_SEEDS
    return {
        "extra_steps": comparison.extra_steps,
        "difference": _known(equal.value),
        "ci": [_known(low), _known(high)],
        "level": level,
        "verdict": decide((low, high), delta=delta) if enough else "undetermined",
    }


def _units(found: Estimate) -> str:
    grouped = found.units is not None and found.units < found.examples
    return f" of {found.units:,} prompts or documents" if grouped else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


_REASONS = {
    "equivalent": "the {level} interval lies inside ±{delta} nats per {per}",
    "better": "the {level} interval lies below 0",
    "worse": "the {level} interval lies above 0",
    "undetermined": f"the {{level}}{HOLDS_ZERO}and reaches beyond ±{{delta}} nats per {{per}}",
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
    saved: Mapping[str, float | None] | None,
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
    worth = worth_in_steps(saved, versus, comparison.steps)
    if worth:
        said += f", {worth}"
    if comparison.equal_compute is not None:
        other = comparison.equal_compute
        low, high = other.interval(level)
        said += (
            f"; against {versus} trained {comparison.extra_steps} steps longer, as many as the scan took, "
            f"{signed(other.value)} ({signed(low)} to {signed(high)})"
        )
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
