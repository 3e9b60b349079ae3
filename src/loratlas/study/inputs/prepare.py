"""From a spec to everything that runs need: plans, encoded rows, and what is to be said about them.

All that can be wrong with a request is found here, before a folder is made.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loratlas.errors import DataError, OutputError
from loratlas.placement.plan import Plan
from loratlas.sources import DEMO, judged_split, model_source, named_base, open_rows, open_task
from loratlas.study.inputs.arm_checks import check_arms, check_patterns, check_task
from loratlas.study.inputs.clusters import clusters_of
from loratlas.study.inputs.match_budgets import BudgetMatch, arms_of_scan, check_written, plans
from loratlas.study.inputs.preference_pairs import memory_of, read_pairs
from loratlas.study.inputs.row_splits import draw_rows, hold_out
from loratlas.study.results import side_metrics
from loratlas.study.spec.study_spec import StudySpec

if TYPE_CHECKING:
    from loratlas.anatomy.sites import Anatomy
    from loratlas.cost.peak_memory import PeakMemory
    from loratlas.data.examples import Encoded
    from loratlas.data.rows import Rows
    from loratlas.models.task import Task
    from loratlas.placement.plan import Plan
    from loratlas.scan.pace import OnEvent
    from loratlas.scan.scores import Scan
    from loratlas.training.settings import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A study ready to run.

    Args:
        source: what loads the base: a path or a Hub id.
        task: what it is trained to do.
        head: parameters that train beside the adapters of every arm, because the task has added a head.
        anatomy: of the base.
        plans: arm → plan. matches: arm → how its spending compares with the reference's, None for the
            reference.
        train, tuning, evaluation: encoded rows; tuning rows were held out from the training rows.
        asked: evaluation rows as text, where a task metric is to be measured.
        forgetting: encoded rows that nothing is trained on, where they were asked for.
        notes: sentences for the reader.
        clusters: one number for each evaluation row, equal where rows share a prompt or a document; None: none do.
        memory: tells the peak bytes of a typical step.
        scan: what placed the arms whose placement is ``scan``, as plain data; None where there is none.
        moving: arm → parameters at the end, of arms whose adapters move inside their runs.
    """

    source: str
    task: Task
    head: int
    anatomy: Anatomy
    plans: dict[str, Plan]
    matches: dict[str, BudgetMatch | None]
    train: Encoded
    tuning: Encoded
    evaluation: Encoded
    asked: Rows | None
    forgetting: Encoded | None
    notes: tuple[str, ...]
    memory: PeakMemory
    clusters: tuple[int, ...] | None = None
    scan: dict[str, Any] | None = None
    moving: Mapping[str, int] = field(default_factory=dict)

    def about(self, spec: StudySpec) -> dict[str, Any]:
        """What the ledger keeps about the whole study, as plain data."""
        return {
            "spec": spec.to_json(),
            "spec_digest": spec.digest,
            "arms": list(spec.arms),
            "task": self.task.to_json(),
            "head": self.head,
            "base": {
                "model": spec.model,
                "model_type": self.anatomy.model_type,
                "parameters": self.anatomy.parameters,
                "config_digest": self.anatomy.config_digest,
            },
            "data": {
                "train": _data(self.train, spec.data.train),
                "tuning": _data(self.tuning, f"{spec.data.train}, held out"),
                "evaluation": _data(self.evaluation, evaluation_source(spec)),
                "template": self.train.template,
                "loss": spec.data.loss,
                **self._forgetting(spec),
            },
            "trainable": {name: self.moving.get(name, plan.trainable) for name, plan in self.plans.items()},
            "predicted_peak": self.predicted_peaks(),
            "plans": {name: plan.to_json() for name, plan in self.plans.items()},
            "matches": {name: match and match.to_json() for name, match in self.matches.items()},
            "anatomy": {
                "layers": self.anatomy.layers,
                "roles": sorted({site.role for site in self.anatomy.sites}),
                "sites": [
                    {
                        "path": s.path,
                        "layer": s.layer,
                        "scope": s.scope,
                        "role": s.role,
                        "shape": list(s.shape),
                    }
                    for s in self.anatomy.sites
                ],
            },
            "notes": list(self.notes),
            **({} if self.clusters is None else {"clusters": list(self.clusters)}),
            **({} if self.scan is None else {"scan": self.scan}),
            **({"moving": dict(self.moving)} if self.moving else {}),
        }

    def _forgetting(self, spec: StudySpec) -> dict[str, Any]:
        if self.forgetting is None or spec.forgetting is None:
            return {}
        return {"forgetting": _data(self.forgetting, spec.forgetting.data)}

    def predicted_peaks(self) -> dict[str, int | None]:
        """Arm → peak bytes of a typical step, by a dry run, for runs of unmeasured memory; None: none is possible."""
        from loratlas.errors import ModelError

        peaks: dict[str, int | None] = {}
        for name, plan in self.plans.items():
            try:
                peaks[name] = self.memory(plan.ranks)
            except ModelError:
                peaks[name] = None
        return peaks


def prepare(
    spec: StudySpec,
    begun: Mapping[str, Any] | None = None,
    *,
    on_scan: OnEvent | None = None,
    scan_folder: Callable[[], Path] | None = None,
) -> Prepared:
    """Read the base's anatomy, resolve the arms and encode the rows.

    Args:
        spec: the study.
        begun: attributes of the ledger, where the study has begun: its scan is not made again.
        on_scan: called with what a scan of it does.
        scan_folder: called before a scan; gives the folder that keeps its state.

    Raises:
        ModelError, PlacementError, BudgetError, DataError, SpecError: as the parts find them.
        Interrupted: Ctrl-C or SIGTERM in a scan.
    """
    from loratlas.adapters.trained_heads import head_size
    from loratlas.anatomy.read import read
    from loratlas.data.encode import load_tokenizer
    from loratlas.data.task_examples import encode_for
    from loratlas.models.config import load_config

    source = model_source(spec.model, folder=spec.folder)
    config = base_config = load_config(source)
    scanned_arms = arms_of_scan(spec, begun)
    tokenizer = load_tokenizer(source)
    data, notes = spec.data, [note for note in (named_base(source).note,) if note]
    if spec.trainer is not None:
        whole, judged, judged_rows = read_pairs(spec, source, tokenizer)
        task, anatomy = whole.task, replace(read(source), model=spec.model)
    else:
        train_rows = open_rows(
            data.train, split=data.split, mapping=data.map or None, limit=data.limit, folder=spec.folder
        )
        task, its_config = open_task(source, train_rows, tokenizer, asked=spec.task)
        check_task(spec, task, scanned_arms)
        config = its_config or base_config
        anatomy = replace(read(its_config or source), model=spec.model)
        judged_rows = open_rows(
            data.eval or data.train,
            split=judged_split(data.eval or data.train, data.eval_split),
            mapping=None if (data.eval or "").startswith(DEMO) else data.map or None,  # as `train --eval`
            folder=spec.folder,
        )
        both = (train_rows, judged_rows)
        notes += dict.fromkeys(f"{rows.source}: {remark}." for rows in both for remark in rows.remarks)
        options = {"config": config, "max_length": spec.max_length, "loss": data.loss}
        whole = encode_for(task, train_rows, tokenizer, **options)
        judged = encode_for(task, judged_rows, tokenizer, **options)
    # Of tuning rows, which are held out from them, there are few: what a run sees is close to all of them.
    memory = memory_of(config, anatomy, whole, _settings(spec))
    resolved, matches = ({}, {}) if scanned_arms else plans(spec, anatomy, memory)
    moving = check_arms(spec, resolved, config, anatomy, memory, scanned_arms, shared=training(spec))
    held_out, chosen = np.random.SeedSequence([spec.seed, 3]).spawn(2)
    train, tuning = hold_out(whole, spec.tuning.rows, held_out, spec)
    evaluation = draw_rows(judged, spec.evaluation.rows, chosen)
    scanned = None
    if scanned_arms:
        check_written(spec, anatomy)
        kept = {name: Plan.from_json(begun["plans"][name]) for name in scanned_arms} if begun else {}
        scan = None if begun else _scan(spec, anatomy, train, source, on_scan, scan_folder)
        scanned = begun["scan"] if begun else scan and scan.to_json(gains=False)
        resolved, matches = plans(spec, anatomy, memory, scan=scan, known=kept)
        moving = check_arms(spec, resolved, config, anatomy, memory, scanned_arms, shared=training(spec))
    check_patterns(spec, resolved, scanned_arms, config, whole, _settings(spec))
    if len(evaluation) < spec.evaluation.rows:
        notes.append(
            f"{len(evaluation):,} evaluation rows, all there are; {spec.evaluation.rows:,} were asked for."
        )
    if len(evaluation) < 2:
        raise DataError(
            given=evaluation_source(spec),
            found="fewer than two rows to evaluate on",
            instead="2 rows or more",
        )
    seen = {example.input_ids.tobytes() for example in whole.examples}
    known = sum(example.input_ids.tobytes() in seen for example in evaluation.examples)
    if known:
        notes.append(
            f"{known:,} of the {len(evaluation):,} evaluation rows are in the training rows as well."
        )
    forgetting = side_metrics.forgetting_rows(spec, task, tokenizer, config)
    if forgetting is not None and spec.forgetting is not None:
        forgetting = draw_rows(forgetting, spec.forgetting.rows, np.random.SeedSequence([spec.seed, 4]))
        known = sum(example.input_ids.tobytes() in seen for example in forgetting.examples)
        if known:
            notes.append(
                f"{known:,} of the {len(forgetting):,} rows for forgetting are in the training rows."
            )
    if spec.subset is not None and spec.subset > len(train):
        from loratlas.errors import SpecError

        raise SpecError(
            given=f"subset: {spec.subset}",
            found=f"{len(train)} rows to train on",
            instead=f"{len(train)} or less",
        )
    notes += [f"{name}: {warning}." for name, plan in resolved.items() for warning in plan.warnings]
    return Prepared(
        source=source,
        task=task,
        head=head_size(config),
        anatomy=anatomy,
        plans=resolved,
        matches=matches,
        train=train,
        tuning=tuning,
        evaluation=evaluation,
        asked=side_metrics.asked_rows(spec, judged_rows, evaluation),
        forgetting=forgetting,
        notes=tuple(notes),
        memory=memory,
        clusters=clusters_of(evaluation, judged_rows),
        scan=scanned,
        moving=moving,
    )


def _scan(
    spec: StudySpec,
    anatomy: Anatomy,
    train: Encoded,
    source: str,
    on_event: OnEvent | None,
    folder: Callable[[], Path] | None,
) -> Scan:
    """Measure where adapters help most, on training rows alone, on the device that runs train on."""
    from loratlas.models.load import load_model
    from loratlas.scan.run_scan import scan

    model: Any = load_model(source, dtype=spec.dtype)
    packed = False if spec.packing == "off" else None
    model = model.to(training_device())
    out = folder() if folder is not None else None
    measure = partial(
        scan, model, anatomy, train, seed=spec.seed, packed=packed, out=out, resume=True, on_event=on_event
    )
    try:
        return measure()
    except OutputError:  # the state of another study, stopped before its first run
        if out is not None:
            shutil.rmtree(out, ignore_errors=True)
        return measure()


def training_device() -> str:
    """Where runs train: the first GPU, or the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def training(spec: StudySpec) -> dict[str, Any]:
    """Settings that all runs of a study share, by the names of :class:`loratlas.training.settings.Settings`."""
    return {
        "steps": spec.steps,
        "batch_size": spec.batch_size,
        "micro_batch": spec.micro_batch,
        "schedule": spec.schedule,
        "warmup": spec.warmup,
        "weight_decay": spec.weight_decay,
        "clip": spec.clip,
        "dtype": spec.dtype,
        "checkpointing": spec.checkpointing,
        "subset": spec.subset,
        # Left out where it is off, so that runs trained before it could be asked for are still the same runs.
        **({"compile": "on"} if spec.compile == "on" else {}),
    }


def _settings(spec: StudySpec) -> Settings:
    """Settings of a run of the study, as far as its memory depends on them."""
    from loratlas.training.settings import Settings

    return Settings(**training(spec), lr=spec.learning_rates[0])


def evaluation_source(spec: StudySpec) -> str:
    """The evaluation rows' source, as written in the spec."""
    source = spec.data.eval or spec.data.train
    split = judged_split(source, spec.data.eval_split)
    return f"{source} [{split}]" if split else source


def _data(encoded: Encoded, source: str) -> dict[str, Any]:
    report = encoded.report
    return {
        "source": source,
        "digest": encoded.digest,
        "rows": len(encoded),
        "tokens": report.tokens,
        "answer_tokens": report.answer_tokens,
        "cut": report.cut,
        "dropped": report.dropped,
    }
