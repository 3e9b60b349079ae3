"""What a study found, read from its folder alone: the ledger (spec included) and the runs' Parquet files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loratlas.errors import OutputError
from loratlas.models.task import Task
from loratlas.sealed_json import ChangedError, read_sealed, write_sealed
from loratlas.study.execution.ledger import NAME, Key, Ledger
from loratlas.study.execution.rate_choice import run_variance
from loratlas.study.execution.run_records import is_whole
from loratlas.study.execution.schedule import NEAR, scan_steps, schedule
from loratlas.study.execution.schedule_state import BASE, Schedule
from loratlas.study.inputs.match_budgets import arms_of_scan
from loratlas.study.results.arm_results import (
    ArmLosses,
    Lengths,
    arm_losses,
    arm_result,
    curves_of,
    forgetting_before,
    judged_of,
    reference_lengths,
    side_results,
    stacked,
)
from loratlas.study.results.came_apart import CameApart, came_apart
from loratlas.study.results.estimator import estimate
from loratlas.study.results.findings import Comparison, Finding, judge, pareto
from loratlas.study.results.metric_disagreement import Judged, Measure, by_measure, measures, ranks
from loratlas.study.results.side_metrics import reported_metrics
from loratlas.study.results.study_notes import budget_sentence, reach, scan_record, study_notes
from loratlas.study.results.trainable_counts import ended_with, spread_notes
from loratlas.study.spec.rates_and_seeds import seeds
from loratlas.study.spec.spec_file import parse_spec
from loratlas.study.spec.study_spec import StudySpec

FINDINGS = "findings.json"
SCHEMA = "loratlas.study"
VERSION = 1

SUPERSEDED = (
    "run by the first edition of docs/method/statistics.md: its rates are too far apart for verdicts about small "
    "differences, and their uncertainty is no part of the intervals"
)
"""What is said of a study of the first edition."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyResult:
    """A study's arms and findings.

    Args:
        data: the whole result as plain data, schema ``loratlas.study``, version 1.
        findings: one for each arm but the reference.
    """

    data: dict[str, Any]
    findings: tuple[Finding, ...]

    @property
    def complete(self) -> bool:
        """Whether every run is finished; findings of an incomplete study are undetermined."""
        return self.data["complete"]

    @property
    def arms(self) -> list[dict[str, Any]]:
        """The arms, as in the JSON."""
        return self.data["arms"]

    def to_json(self) -> dict[str, Any]:
        """Plain data, schema ``loratlas.study``."""
        return self.data


def load_study(out: str | Path) -> StudyResult:
    """Read a study's folder, finished or not, every byte compared with its digest.

    Raises:
        OutputError: no study is in it, or a file of it is not what was written.
    """
    out = Path(out)
    if (out / FINDINGS).exists():
        try:
            read_sealed(out / FINDINGS)
        except (ChangedError, OSError) as error:
            raise _changed(out, str(out / FINDINGS), str(error)) from error
    ledger = Ledger.open(out, create=False)
    about = ledger.about
    if not about.get("begun"):
        raise OutputError(
            given=str(out), found="a ledger without a study", instead="a folder that a study wrote"
        )
    spec = parse_spec(about["spec"], where=f"the ledger of {out}", kept=True)
    finished = ledger.finished()
    for record in finished.values():
        if not is_whole(out / "runs" / record["digest"], record):
            folder = out / "runs" / record["digest"]
            raise _changed(
                out, str(folder), "files of a finished run that are missing, or not what was written"
            )
    return build(spec, about, finished, out / "runs")


def write_findings(out: Path, result: StudyResult) -> None:
    """Write ``findings.json`` into a study's folder, with the digests of itself and of the ledger."""
    write_sealed(out / FINDINGS, result.to_json(), files=(NAME,))


def _changed(out: Path, given: str, found: str) -> OutputError:
    return OutputError(
        given=given,
        found=found,
        instead=f"the folder as it was written, or `loratlas study SPEC --out {out}`, which does again what is broken",
    )


def build(
    spec: StudySpec, about: Mapping[str, Any], finished: Mapping[Key, Mapping[str, Any]], runs: Path
) -> StudyResult:
    """Put the result together.

    Args:
        spec: the study.
        about: what the ledger keeps about the whole study.
        finished: record of every finished run.
        runs: folder of the runs' folders.
    """
    extra = scan_steps(about.get("scan"), spec.batch_size)
    state = schedule(spec, finished, extra_steps=extra)
    losses = {arm: arm_losses(spec, state, finished, runs, arm) for arm in spec.arms}
    reference = losses[spec.reference]
    base = finished.get(BASE)
    arms = [arm_result(spec, about, state, finished, runs, losses[arm], reference) for arm in spec.arms]
    task = Task.from_json(about.get("task") or Task().to_json())
    by = measures(tasks=reported_metrics(spec, task.to_json()), per=task.unit)
    judged = {arm: judged_of(losses[arm]) for arm in spec.arms}
    compared = ranks(list(judged.values()), by)
    before = forgetting_before(base, runs)
    by_name = {arm["name"]: arm for arm in arms}
    other_lengths = reference_lengths(spec, state, finished, runs)
    comparisons = [
        _compare(spec, about, state, losses, arm, by_name, other_lengths)
        for arm in spec.arms
        if arm != spec.reference
    ]
    findings = judge(
        comparisons, versus=spec.reference, delta=spec.delta, reach=reach(spec, about), per=task.unit
    )
    for arm, one in zip(arms, losses.values(), strict=True):
        arm |= side_results(judged[one.arm], one, by, before)
    counts = {arm: ended_with(arm, about, one.records) for arm, one in losses.items()}
    data = {
        "schema": SCHEMA,
        "version": VERSION,
        "name": spec.name,
        "spec": spec.to_json(),
        "spec_digest": spec.digest,
        "complete": state.complete,
        "demonstration": spec.demonstration,
        "protocol": spec.protocol,
        "superseded": SUPERSEDED if spec.protocol == 1 else None,
        "task": task.to_json() | {"unit": f"nats per {task.unit}"},
        "head": about.get("head", 0),
        "reference": spec.reference,
        "base": dict(about["base"]),
        "data": {**about["data"], "packing": base["packing"] if base else None},
        "base_nll": base["nll"] if base else None,
        "base_beside": {name: base.get(name) if base else None for name in ("metric", "forgetting")},
        "learning_rates": list(state.rates),
        "reference_curve": [
            {"steps": steps, "seed": seed, "nll": float(x.sum() / n.sum())}
            for steps, by_seed in sorted(other_lengths.items())
            for seed, (x, n) in by_seed.items()
        ],
        "arms": arms,
        "findings": [
            finding.to_json() | _turns(finding, judged, by, compared["opposed"]) for finding in findings
        ],
        "ranks": compared,
        "pareto": _pareto(arms),
        "anatomy": about["anatomy"],
        **({"scan": scan_record(about["scan"])} if "scan" in about else {}),
        "notes": [*about["notes"], *study_notes(spec, about, state), *spread_notes(counts)],
        "runs": {"finished": len(finished), "planned": state.planned},
        "machine": about["machine"],
        "versions": about["versions"],
        "revision": about["revision"],
        "page": None,
    }
    return StudyResult(data=data, findings=tuple(findings))


def _turns(
    finding: Finding,
    judged: Mapping[str, Judged],
    by: Sequence[Measure],
    opposed: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """A finding by every measure: where another one puts the other arm ahead, and whether that is established."""
    pair = {finding.arm, finding.versus}
    against = [flip for flip in opposed if {flip["first"], flip["second"]} == pair]
    return {
        "by_measure": by_measure(judged[finding.arm], judged[finding.versus], by, level=finding.level),
        "flips": [flip["by"] for flip in against],
        "flips_established": any(flip["established"] for flip in against),
        "flip_sentences": [flip["sentence"] for flip in against],
    }


def _compare(
    spec: StudySpec,
    about: Mapping[str, Any],
    state: Schedule,
    by_arm: Mapping[str, ArmLosses],
    arm: str,
    arms: Mapping[str, Mapping[str, Any]],
    other_lengths: Lengths,
) -> Comparison:
    losses, reference = by_arm[arm], by_arm[spec.reference]
    both = [seed for seed in losses.summed if seed in reference.summed]
    difference, longer = None, None
    extra = scan_steps(about.get("scan"), spec.batch_size)
    if both and losses.tokens is not None:
        terms: dict[str, Any] = {"clusters": about.get("clusters")} | tuning_terms(state, arm, spec.reference)
        difference = estimate(
            stacked(losses.summed, both) - stacked(reference.summed, both), losses.tokens, **terms
        )
        more = (
            {seed: x for seed, (x, _) in other_lengths.get(spec.steps + extra, {}).items()} if extra else {}
        )
        shared = [seed for seed in losses.summed if seed in more]
        if len(shared) > 1 and arm in arms_of_scan(spec, about):
            longer = estimate(stacked(losses.summed, shared) - stacked(more, shared), losses.tokens, **terms)
    problems = []
    if not state.complete:
        problems.append("the study is not finished")
    for one in (losses, reference):
        if one.diverged:
            problems.append(f"{one.diverged} of {one.wanted} evaluation runs of {one.arm} diverged")
        if one.arm in state.at_edge:
            problems.append(
                f"the best learning rate of {one.arm}, near {state.chosen[one.arm]:g}, lies at the edge of what "
                "could be tried, or next to a rate that diverged"
                if spec.protocol == 2
                else f"the best learning rate of {one.arm}, {state.chosen[one.arm]:g}, lies at the edge of the grid"
            )
    return Comparison(
        arm=losses.arm,
        estimate=difference,
        problems=tuple(problems),
        steps=spec.steps,
        curves=curves_of(other_lengths, reference, spec.steps, skip=spec.steps + extra if extra else None),
        equal_compute=longer,
        extra_steps=extra,
        came_apart=tuple(run for run in _apart(spec, state, by_arm) if run.arm in (arm, spec.reference)),
        caveat=budget_sentence(losses.arm, reference.arm, arms, spec.match),
    )


def _apart(spec: StudySpec, state: Schedule, by_arm: Mapping[str, ArmLosses]) -> list[CameApart]:
    """Runs of the evaluation, and of tuning near each optimum, that came apart."""
    tuning, evaluation = seeds(spec)
    if not state.near:
        return []
    evaluated = {
        arm: np.array(
            [
                one.summed[seed].sum() / one.tokens.sum()
                if seed in one.summed and one.tokens is not None
                else np.nan
                for seed in evaluation
            ]
        )
        for arm, one in by_arm.items()
    }
    separated = came_apart(
        evaluated, seeds=evaluation, rates=state.chosen, phase="evaluation", delta=spec.delta
    )
    for index in range(NEAR):
        near = {
            arm: np.where(np.isfinite(y[index]), y[index], np.nan) for arm, y in state.near_losses.items()
        }
        rates = {arm: three[index] for arm, three in state.near.items()}
        separated += came_apart(near, seeds=tuning, rates=rates, phase="tuning", delta=spec.delta)
    return separated


def tuning_terms(state: Schedule, arm: str, reference: str) -> dict[str, float]:
    """What tuning adds to the variance of a difference: the rates' shares, and the variance of its runs."""
    if not state.near_losses:
        return {}
    terms = {"rate_share": state.share[arm] + state.share[reference]}
    one, other = state.near_losses[arm], state.near_losses[reference]
    if one.shape[1] > 1 and np.isfinite(one).all() and np.isfinite(other).all():
        terms |= {
            "run_variance": float(run_variance(one, other)),
            "run_df": float(NEAR * (one.shape[1] - 1)),
        }
    return terms


def _pareto(arms: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    axes = {"params": "trainable", "time": "step_seconds", "memory": "peak_bytes"}
    return {
        name: pareto(
            {arm["name"]: (arm[axis], arm["nll"]) for arm in arms if None not in (arm[axis], arm["nll"])}
        )
        for name, axis in axes.items()
    }
