"""What a study found, read from its folder alone: the ledger (spec included) and the runs' Parquet files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loratlas.errors import OutputError
from loratlas.models.task import CAUSAL, Task
from loratlas.scan.advice import DECIDES, track_record
from loratlas.study.estimator import Estimate, estimate
from loratlas.study.findings import Comparison, Finding, judge, pareto
from loratlas.study.ledger import Key, Ledger
from loratlas.study.metric_disagreement import Judged, Measure, by_measure, measures, ranks
from loratlas.study.run_records import read_curve, read_examples
from loratlas.study.schedule import BASE, Schedule, nll, schedule
from loratlas.study.side_metrics import read_forgetting, read_metrics, same_rows, told_metrics
from loratlas.study.study_spec import StudySpec, parse_spec, seeds

SCHEMA = "loratlas.study"
VERSION = 1
CURVE_POINTS = 60
"""Points of a printed curve; steps in between are averaged."""


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
    """Read a study's folder, finished or not.

    Raises:
        OutputError: no study is in it.
    """
    out = Path(out)
    ledger = Ledger.open(out, create=False)
    facts = ledger.facts
    if not facts.get("begun"):
        raise OutputError(
            given=str(out), found="a ledger without a study", instead="a folder that a study wrote"
        )
    spec = parse_spec(facts["spec"], where=f"the ledger of {out}")
    return build(spec, facts, ledger.finished(), out / "runs")


def build(
    spec: StudySpec, facts: Mapping[str, Any], finished: Mapping[Key, Mapping[str, Any]], runs: Path
) -> StudyResult:
    """Put the result together.

    Args:
        spec: the study.
        facts: what the ledger keeps about the whole study.
        finished: record of every finished run.
        runs: folder of the runs' folders.
    """
    state = schedule(spec, finished)
    losses = {arm: _losses(spec, state, finished, runs, arm) for arm in spec.arms}
    reference = losses[spec.reference]
    base = finished.get(BASE)
    arms = [_arm(spec, facts, state, finished, runs, losses[arm], reference) for arm in spec.arms]
    task = Task.from_json(facts.get("task") or Task().to_json())
    by = measures(tasks=told_metrics(spec, task.to_json()), per=task.unit)
    judged = {arm: _judged(losses[arm]) for arm in spec.arms}
    compared = ranks(list(judged.values()), by)
    before = _before(base, runs)
    by_name = {arm["name"]: arm for arm in arms}
    comparisons = [
        _compare(spec, facts, state, losses[arm], reference, by_name)
        for arm in spec.arms
        if arm != spec.reference
    ]
    findings = judge(
        comparisons, versus=spec.reference, delta=spec.delta, reach=_reach(spec, facts), per=task.unit
    )
    for arm, one in zip(arms, losses.values(), strict=True):
        arm |= _beside(judged[one.arm], one, by, before)
    data = {
        "schema": SCHEMA,
        "version": VERSION,
        "name": spec.name,
        "spec": spec.to_json(),
        "spec_digest": spec.digest,
        "complete": state.complete,
        "demonstration": spec.demonstration,
        "task": task.to_json() | {"unit": f"nats per {task.unit}"},
        "head": facts.get("head", 0),
        "reference": spec.reference,
        "base": dict(facts["base"]),
        "data": {**facts["data"], "packing": base["packing"] if base else None},
        "base_nll": base["nll"] if base else None,
        "base_beside": {name: base.get(name) if base else None for name in ("metric", "forgetting")},
        "learning_rates": list(state.rates),
        "arms": arms,
        "findings": [
            finding.to_json() | _turns(finding, judged, by, compared["opposed"]) for finding in findings
        ],
        "ranks": compared,
        "pareto": _pareto(arms),
        "anatomy": facts["anatomy"],
        **({"scan": _scan(facts["scan"])} if "scan" in facts else {}),
        "notes": [*facts["notes"], *_notes(spec, facts, state)],
        "runs": {"finished": len(finished), "planned": state.planned},
        "machine": facts["machine"],
        "versions": facts["versions"],
        "revision": facts["revision"],
        "page": None,
    }
    return StudyResult(data=data, findings=tuple(findings))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Losses:
    """Evaluation losses of one arm: by seed, for the runs that finished and did not diverge."""

    arm: str
    summed: dict[int, np.ndarray]
    tokens: np.ndarray | None
    tasks: dict[str, dict[int, np.ndarray]]
    elsewhere: dict[int, np.ndarray]
    records: dict[int, Mapping[str, Any]]
    diverged: int
    wanted: int


def _losses(
    spec: StudySpec, state: Schedule, finished: Mapping[Key, Mapping[str, Any]], runs: Path, arm: str
) -> _Losses:
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
            for name, found in scores.items():
                tasks.setdefault(name, {})[seed] = found
        if "forgetting" in record:
            elsewhere[seed] = read_forgetting(runs / record["digest"])[1]
    return _Losses(
        arm=arm,
        summed=summed,
        tokens=tokens,
        tasks=tasks,
        elsewhere=elsewhere,
        records=records,
        diverged=diverged,
        wanted=len(evaluation),
    )


def _judged(losses: _Losses) -> Judged:
    return Judged(name=losses.arm, summed=losses.summed, tokens=losses.tokens, tasks=losses.tasks)


def _before(base: Mapping[str, Any] | None, runs: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """(n, nll) of the bare base on the rows that nothing is trained on, if they were asked for."""
    return read_forgetting(runs / base["digest"]) if base and "forgetting" in base else None


def _beside(
    judged: Judged, losses: _Losses, by: Sequence[Measure], before: tuple[np.ndarray, np.ndarray] | None
) -> dict[str, Any]:
    """What an arm reached by other measures than the loss, and on rows that it was not trained for."""
    found: dict[str, Any] = {
        "definitions": {m.name: m.value(judged) for m in by if m.definition is not None},
        "metrics": [],
        "metric": None,
        "forgetting": None,
    }
    for measure in by:
        if measure.definition is not None or not losses.tasks.get(measure.name):
            continue
        scores = np.stack(list(losses.tasks[measure.name].values()))
        told = estimate(scores, np.ones(scores.shape[1])) if scores.size else None
        found["metrics"].append(
            {
                "name": measure.name,
                "unit": measure.unit,
                "value": told and told.value,
                "ci": _interval(told),
                "rows": scores.shape[1],
            }
        )
    found["metric"] = next(iter(found["metrics"]), None)
    if before is not None and losses.elsewhere:
        n, nll = before
        after = np.stack(list(losses.elsewhere.values()))
        change = estimate(after - nll, n)
        found["forgetting"] = {
            "before": float(nll.sum() / n.sum()),
            "after": float(after.mean(axis=0).sum() / n.sum()),
            "change": change.value,
            "ci": _interval(change),
            "rows": len(n),
        }
    return found


def _turns(
    finding: Finding,
    judged: Mapping[str, Judged],
    by: Sequence[Measure],
    opposed: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """A finding by every measure: where another one puts the other arm ahead, and whether that is established."""
    pair = {finding.arm, finding.versus}
    against = [told for told in opposed if {told["first"], told["second"]} == pair]
    return {
        "by_measure": by_measure(judged[finding.arm], judged[finding.versus], by, level=finding.level),
        "flips": [told["by"] for told in against],
        "flips_established": any(told["established"] for told in against),
        "flip_sentences": [told["sentence"] for told in against],
    }


def _stack(summed: Mapping[int, np.ndarray], order: Sequence[int]) -> np.ndarray:
    return np.stack([summed[seed] for seed in order])


def _arm(
    spec: StudySpec,
    facts: Mapping[str, Any],
    state: Schedule,
    finished: Mapping[Key, Mapping[str, Any]],
    runs: Path,
    losses: _Losses,
    reference: _Losses,
) -> dict[str, Any]:
    name = losses.arm
    tuning, _ = seeds(spec)
    plan = facts["plans"][name]
    found = None
    if losses.summed and losses.tokens is not None:
        found = estimate(_stack(losses.summed, list(losses.summed)), losses.tokens)
    ratios = [
        record["step_seconds"] / reference.records[seed]["step_seconds"]
        for seed, record in losses.records.items()
        # A run that diverged at once has no step to time.
        if record["step_seconds"] and seed in reference.records and reference.records[seed]["step_seconds"]
    ]
    measured = _largest([record.get("peak_bytes") for record in losses.records.values()])
    predicted = facts.get("predicted_peak", {}).get(name)
    return {
        "name": name,
        "placement": spec.arms[name].placement,
        "settings": spec.arms[name].model_dump(mode="json", exclude={"placement"}),
        "plan": plan,
        "lr": state.chosen.get(name),
        "nll": found and found.value,
        "ci": _interval(found),
        "trainable": facts["trainable"][name],
        "step_time_ratio": _median(ratios),
        "step_seconds": _median([record["step_seconds"] for record in losses.records.values()]),
        "peak_bytes": predicted if measured is None else measured,
        "peak_source": "predicted" if measured is None else "measured",
        "diverged": losses.diverged,
        "match": facts["matches"].get(name),
        "tuning": [
            {"lr": lr, "seed": seed, "nll": record["nll"], "diverged": bool(record["diverged"])}
            for lr in state.rates
            for seed in tuning
            if (record := finished.get(Key(phase="tuning", arm=name, lr=lr, seed=seed)))
        ],
        "lr_at_edge": name in state.at_edge,
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


def _interval(found: Estimate | None) -> list[float | None]:
    if found is None or math.isnan(found.error):
        return [None, None]
    return list(found.interval(0.95))


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


def _compare(
    spec: StudySpec,
    facts: Mapping[str, Any],
    state: Schedule,
    losses: _Losses,
    reference: _Losses,
    arms: Mapping[str, Mapping[str, Any]],
) -> Comparison:
    both = [seed for seed in losses.summed if seed in reference.summed]
    found = None
    if both and losses.tokens is not None:
        found = estimate(_stack(losses.summed, both) - _stack(reference.summed, both), losses.tokens)
    problems = []
    if not state.complete:
        problems.append("the study is not finished")
    for one in (losses, reference):
        if one.diverged:
            problems.append(f"{one.diverged} of {one.wanted} evaluation runs of {one.arm} diverged")
        if one.arm in state.at_edge:
            problems.append(
                f"the best learning rate of {one.arm}, {state.chosen[one.arm]:g}, lies at the edge of the grid"
            )
    return Comparison(
        arm=losses.arm,
        estimate=found,
        problems=tuple(problems),
        caveat=spending(losses.arm, reference.arm, arms, spec.match),
    )


_QUANTITIES = {"params": "trainable parameters", "time": "step time", "memory": "peak memory"}


def spending(arm: str, versus: str, arms: Mapping[str, Mapping[str, Any]], match: str) -> str:
    """The sentence on what both arms spent: whether it was matched, and what it was."""
    one, two = arms[arm], arms[versus]
    counts = f"{one['trainable']:,} trainable parameters against {two['trainable']:,}"
    matched = one["match"]
    if matched and matched["solved"]:
        off = f"{100 * abs(matched['relative']):.1f} %" if matched["relative"] else "exactly"
        within = "exactly" if off == "exactly" else f"to within {off}"
        return f"Both were given equal {_QUANTITIES[match]}, met {within} ({counts})."
    if one["trainable"] == two["trainable"]:
        return f"Both have {one['trainable']:,} trainable parameters."
    return f"They did not spend the same: {counts}."


def _reach(spec: StudySpec, facts: Mapping[str, Any]) -> str:
    size = facts["base"]["parameters"]
    millions = f"{size / 1e9:.1f} billion" if size >= 1e9 else f"{size / 1e6:.1f} million"
    return (
        f"of {facts['data']['evaluation']['source']}, for {spec.model} ({millions} parameters) trained "
        f"{spec.steps:,} steps of {spec.batch_size} rows of {spec.data.train}"
    )


def _notes(spec: StudySpec, facts: Mapping[str, Any], state: Schedule) -> list[str]:
    notes = [
        "The findings are about this base, this task, this budget and this size; "
        "a small base says nothing about a large one."
    ]
    if spec.demonstration:
        notes.append(
            f"This is a demonstration: {len(spec.learning_rates)} learning rates, {spec.tuning.seeds} tuning "
            f"seed{'s' * (spec.tuning.seeds > 1)}, {spec.steps} steps. It shows how a study reads, "
            "and is too short to settle a question."
        )
    if len(state.rates) > len(spec.learning_rates):
        added = [f"{rate:g}" for rate in state.rates if rate not in spec.learning_rates]
        notes.append(f"An optimum lay at the edge of the grid: all arms also tried {', '.join(added)}.")
    if "scan" in facts:
        notes.append(track_record(decided_by(facts["scan"])))
    for name, match in facts["matches"].items():
        if spec.match != "none" and match and not match["solved"]:
            notes.append(f"{name} names its ranks, which were obeyed: its spending is not matched.")
    for name in ("train", "evaluation"):
        told = facts["data"][name]
        if told["cut"] or told["dropped"]:
            notes.append(
                f"Of the rows of {told['source']}, {told['cut']:,} were cut {_where_cut(facts)} to "
                f"{spec.max_length} tokens and {told['dropped']:,} were dropped."
            )
    if spec.base_dropout:
        notes.append(
            "The base's own dropout was on, so that its noise is not shared by the arms of one seed."
        )
    return notes


def _scan(scan: Mapping[str, Any]) -> dict[str, Any]:
    """A study's scan, with what decided and how often rows were read, also where that was not written down."""
    return {**scan, "by": decided_by(scan), "visits": scan.get("visits", scan["rows"])}


def decided_by(scan: Mapping[str, Any]) -> str:
    """The score that decided a scan; those that were written down before they said so were decided by `DECIDES`.

    >>> decided_by({"by": "gradient"}), decided_by({"signals": [{"name": "probe_energy"}, {"name": "probe_yield"}]})
    ('gradient', 'probe_yield')
    >>> decided_by({"signals": [{"name": "gradient"}, {"name": "gradient_energy"}]})
    'gradient'
    """
    names = [signal["name"] for signal in scan.get("signals", ())]
    return scan.get("by") or (DECIDES if DECIDES in names or not names else names[0])


def _where_cut(facts: Mapping[str, Any]) -> str:
    causal = (facts.get("task") or {"name": CAUSAL})["name"] == CAUSAL
    return "from the prompt's left" if causal else "at their end"


def _pareto(arms: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    axes = {"params": "trainable", "time": "step_seconds", "memory": "peak_bytes"}
    return {
        name: pareto(
            {arm["name"]: (arm[axis], arm["nll"]) for arm in arms if None not in (arm[axis], arm["nll"])}
        )
        for name, axis in axes.items()
    }
