"""What an arm reached: losses by seed, other measures, its training curve, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loratlas.errors import OutputError
from loratlas.study.execution.ledger import Key
from loratlas.study.execution.run_records import read_curve, read_examples
from loratlas.study.execution.schedule_state import Schedule, nll
from loratlas.study.results.estimator import Estimate, estimate
from loratlas.study.results.metric_disagreement import Judged, Measure
from loratlas.study.results.side_metrics import read_forgetting, read_metrics, same_rows
from loratlas.study.results.trainable_counts import budget_match, ended_with
from loratlas.study.spec.rates_and_seeds import seeds
from loratlas.study.spec.study_spec import StudySpec

CURVE_POINTS = 60
"""Points of a printed curve; steps in between are averaged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmLosses:
    """Evaluation losses of one arm: by seed, for the runs that finished and did not diverge."""

    arm: str
    summed: dict[int, np.ndarray]
    tokens: np.ndarray | None
    tasks: dict[str, dict[int, np.ndarray]]
    elsewhere: dict[int, np.ndarray]
    records: dict[int, Mapping[str, Any]]
    diverged: int
    wanted: int


def arm_losses(
    spec: StudySpec, state: Schedule, finished: Mapping[Key, Mapping[str, Any]], runs: Path, arm: str
) -> ArmLosses:
    _, evaluation = seeds(spec)
    summed, records, tokens, diverged = {}, {}, None, 0
    tasks, elsewhere, answered = {}, {}, None
    for seed in evaluation if state.chosen else ():
        record = finished.get(Key(phase="evaluation", arm=arm, lr=state.chosen[arm], seed=seed))
        if record is None:
            continue
        records[seed] = record
        if math.isinf(nll(record)):
            diverged += 1
            continue
        _, n, losses = read_examples(runs / record["digest"])
        if tokens is not None and not np.array_equal(tokens, n):
            raise OutputError(
                given=str(runs / record["digest"]),
                found="other evaluation rows than the study's other runs",
                instead="the folder as the study wrote it",
            )
        tokens = n
        summed[seed] = losses
        if "metric" in record:
            rows, scores = read_metrics(runs / record["digest"])
            same_rows(rows, answered, runs / record["digest"])
            answered = rows
            for name, by_example in scores.items():
                tasks.setdefault(name, {})[seed] = by_example
        if "forgetting" in record:
            elsewhere[seed] = read_forgetting(runs / record["digest"])[1]
    return ArmLosses(
        arm=arm,
        summed=summed,
        tokens=tokens,
        tasks=tasks,
        elsewhere=elsewhere,
        records=records,
        diverged=diverged,
        wanted=len(evaluation),
    )


Lengths = Mapping[int, Mapping[int, tuple[np.ndarray, np.ndarray]]]
"""Steps → seed → summed losses and answer tokens of the reference trained so long."""


def reference_lengths(
    spec: StudySpec, state: Schedule, finished: Mapping[Key, Mapping[str, Any]], runs: Path
) -> Lengths:
    """The reference's runs of other lengths that are finished."""
    lengths: dict[int, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    for key, record in finished.items():
        chosen = state.chosen.get(spec.reference)
        if key.steps and key.arm == spec.reference and key.lr == chosen and not math.isinf(nll(record)):
            _, n, losses = read_examples(runs / record["digest"])
            lengths.setdefault(key.steps, {})[key.seed] = (losses, n)
    return lengths


def curves_of(
    lengths: Lengths, reference: ArmLosses, steps: int, *, skip: int | None
) -> tuple[dict[int, float], ...]:
    """The reference's loss at other lengths minus that at its own, by seed; seeds that lack one are left out."""
    kept = {t: by_seed for t, by_seed in lengths.items() if t != skip}
    if not kept:
        return ()
    common = set.intersection(*(set(by_seed) for by_seed in kept.values())) & set(reference.summed)
    return tuple(
        {steps: 0.0}
        | {
            t: float((by_seed[seed][0] - reference.summed[seed]).sum() / by_seed[seed][1].sum())
            for t, by_seed in kept.items()
        }
        for seed in sorted(common)
    )


def judged_of(losses: ArmLosses) -> Judged:
    return Judged(name=losses.arm, summed=losses.summed, tokens=losses.tokens, tasks=losses.tasks)


def forgetting_before(base: Mapping[str, Any] | None, runs: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """(n, nll) of the bare base on the rows that nothing is trained on, if they were asked for."""
    return read_forgetting(runs / base["digest"]) if base and "forgetting" in base else None


def side_results(
    judged: Judged, losses: ArmLosses, by: Sequence[Measure], before: tuple[np.ndarray, np.ndarray] | None
) -> dict[str, Any]:
    """What an arm reached by other measures than the loss, and on rows that it was not trained for."""
    results: dict[str, Any] = {
        "definitions": {m.name: m.value(judged) for m in by if m.definition is not None},
        "metrics": [],
        "metric": None,
        "forgetting": None,
    }
    for measure in by:
        if measure.definition is not None or not losses.tasks.get(measure.name):
            continue
        scores = np.stack(list(losses.tasks[measure.name].values()))
        interval = estimate(scores, np.ones(scores.shape[1])) if scores.size else None
        results["metrics"].append(
            {
                "name": measure.name,
                "unit": measure.unit,
                "value": interval and interval.value,
                "ci": interval_of(interval),
                "rows": scores.shape[1],
            }
        )
    results["metric"] = next(iter(results["metrics"]), None)
    if before is not None and losses.elsewhere:
        n, nll = before
        after = np.stack(list(losses.elsewhere.values()))
        change = estimate(after - nll, n)
        results["forgetting"] = {
            "before": float(nll.sum() / n.sum()),
            "after": float(after.mean(axis=0).sum() / n.sum()),
            "change": change.value,
            "ci": interval_of(change),
            "rows": len(n),
        }
    return results


def _moving(about: Mapping[str, Any], losses: ArmLosses) -> dict[str, Any]:
    """Decisions and moves of an arm's evaluation runs, where its adapters move."""
    if losses.arm not in about.get("moving", {}):
        return {}
    kept = ("decisions", "moves", "steps", "trainable")
    runs = [
        {"seed": seed, **{name: record[name] for name in kept}} for seed, record in losses.records.items()
    ]
    return {"moving": runs}


def stacked(summed: Mapping[int, np.ndarray], order: Sequence[int]) -> np.ndarray:
    return np.stack([summed[seed] for seed in order])


def arm_result(
    spec: StudySpec,
    about: Mapping[str, Any],
    state: Schedule,
    finished: Mapping[Key, Mapping[str, Any]],
    runs: Path,
    losses: ArmLosses,
    reference: ArmLosses,
) -> dict[str, Any]:
    name = losses.arm
    tuning, _ = seeds(spec)
    plan = about["plans"][name]
    loss = None
    if losses.summed and losses.tokens is not None:
        loss = estimate(stacked(losses.summed, list(losses.summed)), losses.tokens)
    ratios = [
        record["step_seconds"] / reference.records[seed]["step_seconds"]
        for seed, record in losses.records.items()
        # A run that diverged at once has no step to time.
        if record["step_seconds"] and seed in reference.records and reference.records[seed]["step_seconds"]
    ]
    measured = _largest([record.get("peak_bytes") for record in losses.records.values()])
    predicted = about.get("predicted_peak", {}).get(name)
    counts, others = (ended_with(one.arm, about, one.records) for one in (losses, reference))
    return {
        "name": name,
        "placement": spec.arms[name].placement,
        "settings": spec.arms[name].model_dump(mode="json", exclude={"placement"}),
        "plan": plan,
        "lr": state.chosen.get(name),
        "nll": loss and loss.value,
        "ci": interval_of(loss),
        "trainable": max(counts),
        "step_time_ratio": _median(ratios),
        "step_seconds": _median([record["step_seconds"] for record in losses.records.values()]),
        "peak_bytes": predicted if measured is None else measured,
        "peak_source": "predicted" if measured is None else "measured",
        "diverged": losses.diverged,
        "match": budget_match(about["matches"].get(name), arm=counts, reference=others),
        **_moving(about, losses),
        "tuning": [
            {"lr": lr, "seed": seed, "nll": record["nll"], "diverged": bool(record["diverged"])}
            for lr in sorted(
                {*state.rates, *(key.lr for key in finished if key.phase == "tuning" and key.arm == name)}
            )
            for seed in tuning
            if (record := finished.get(Key(phase="tuning", arm=name, lr=lr, seed=seed)))
        ],
        "lr_at_edge": name in state.at_edge,
        "near": list(state.near.get(name, ())),
        "rate_error": math.sqrt(state.share[name]) if name in state.share else None,
        "runs": [
            {
                "seed": seed,
                "lr": record["key"]["lr"],
                **{
                    key: record.get(key)
                    for key in (
                        "nll",
                        "train_nll",
                        "step_seconds",
                        "peak_bytes",
                        "seconds",
                        "digest",
                        "diverged",
                    )
                },
            }
            for seed, record in losses.records.items()
        ],
        "curve": _curve([read_curve(runs / record["digest"]) for record in losses.records.values()]),
    }


def interval_of(estimate: Estimate | None) -> list[float | None]:
    if estimate is None or math.isnan(estimate.error):
        return [None, None]
    return list(estimate.interval(0.95))


def _largest(values: Sequence[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _curve(curves: Sequence[Mapping[str, np.ndarray]]) -> dict[str, list[float]]:
    """Training loss over evaluation seeds: mean and range, neighbouring steps averaged to at most 60 points."""
    curves = [curve for curve in curves if len(curve["step"])]
    if not curves:
        return {"steps": [], "mean": [], "low": [], "high": []}
    length = min(len(curve["step"]) for curve in curves)
    groups = np.array_split(np.arange(length), min(length, CURVE_POINTS))
    values = np.array([[curve["nll"][group].mean() for group in groups] for curve in curves])
    return {
        "steps": [float(curves[0]["step"][group].mean()) for group in groups],
        "mean": values.mean(axis=0).tolist(),
        "low": values.min(axis=0).tolist(),
        "high": values.max(axis=0).tolist(),
    }
