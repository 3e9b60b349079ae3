"""What a study measures beside the loss, where its file asks for it: the task itself, and what is forgotten.

Both are taken of the bare base once and of every evaluation run after its last step, on rows that are the same for
all arms. They change nothing about the training. Each leaves a table in the run's folder and its mean in the record.

A classification needs no asking: its accuracy and macro F1 follow from the predictions that every run leaves.
A further task metric is one more entry in :data:`METRICS` and one more name in the spec's `MetricSpec`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loratlas.errors import DataError, OutputError, SpecError
from loratlas.evaluation.class_metrics import PREDICTIONS, correct, f1_rows
from loratlas.evaluation.forgetting import loss_record
from loratlas.evaluation.preference_losses import PREFERENCES, ahead
from loratlas.models.task import CAUSAL, CLASSIFICATION, PREFERENCE
from loratlas.sources import judged_split, open_rows
from loratlas.study.execution.run_records import table
from loratlas.study.results.metric_disagreement import Measure
from loratlas.study.spec.study_spec import WRITTEN

if TYPE_CHECKING:
    from loratlas.data.examples import Encoded
    from loratlas.data.rows import Rows
    from loratlas.models.task import Task
    from loratlas.study.spec.study_spec import StudySpec

METRIC, FORGETTING = "metric.parquet", "forgetting.parquet"
"""Tables in a run's folder."""

METRICS = {
    "exact_match": Measure(name="exact_match", unit="share", higher_is_better=True),
    "rouge_l": Measure(name="rouge_l", said="ROUGE-L", unit="rouge", higher_is_better=True),
    "accuracy": Measure(name="accuracy", unit="share", higher_is_better=True),
    "macro_f1": Measure(name="macro_f1", said="macro F1", unit="f1", higher_is_better=True),
    "preference_accuracy": Measure(
        name="preference_accuracy", said="preference accuracy", unit="share", higher_is_better=True
    ),
    "margin": Measure(name="margin", unit="margin", higher_is_better=True),
}
"""Task metric → how it ranks arms: name, unit, direction."""

_REPORTED = {
    "exact_match": ("exact_match",),
    "rouge_l": ("rouge_l", "exact_match"),
    "accuracy": ("accuracy", "macro_f1"),
    "macro_f1": ("macro_f1", "accuracy"),
    "preference_accuracy": ("preference_accuracy", "margin"),
}
"""Metric that is asked for → those that are told, itself first: the others cost nothing more."""


def reported_metrics(spec: StudySpec, task: Mapping[str, Any]) -> list[Measure]:
    """The task metrics of a study, the one that was asked for first.

    Args:
        spec: the study.
        task: as the ledger keeps it.
    """
    followed = {CLASSIFICATION: "accuracy", PREFERENCE: "preference_accuracy"}.get(task["name"])
    asked = spec.metric.name if spec.metric else followed
    return [METRICS[name] for name in _REPORTED[asked]] if asked else []


def check_metric(spec: StudySpec, task: Task) -> None:
    """Refuse a metric that the task does not have, or whose package is missing.

    Raises:
        SpecError: of another task. SettingsError: ROUGE-L without ``rouge-score``.
    """
    if spec.metric is None:
        return
    if (spec.metric.name in WRITTEN) == (task.name == CLASSIFICATION):
        fits = "accuracy or macro_f1" if task.name == CLASSIFICATION else "exact_match or rouge_l"
        raise SpecError(
            given=f"metric: {spec.metric.name}",
            found=f"a {task.name} task, which has no such metric",
            instead=f"{fits}, or no metric",
        )
    if spec.metric.name == "rouge_l":
        from loratlas.evaluation.rouge import rouge_l

        rouge_l()


def asked_rows(spec: StudySpec, rows: Rows, evaluation: Encoded) -> Rows | None:
    """The first evaluation rows, as text, numbered by their place among the evaluation rows.

    Raises:
        SpecError: a metric of written answers is asked for, and these rows have no prompt to answer.
    """
    if spec.metric is None or evaluation.task.name in (CLASSIFICATION, PREFERENCE):
        return None
    if rows.form == "text":
        raise SpecError(
            given=f"metric: {spec.metric.name}",
            found=f"{rows.source}, raw text without prompts to answer",
            instead="rows with prompts and answers, or no metric",
        )
    chosen = evaluation.examples[: spec.metric.rows]
    numbered = (replace(rows.rows[example.row], source_row=index) for index, example in enumerate(chosen))
    return replace(rows, rows=tuple(numbered))


def forgetting_rows(spec: StudySpec, task: Task, tokenizer: Any, config: Any) -> Encoded | None:
    """All rows of the source that nothing is trained on; rows of the study's own task.

    Raises:
        DataError: they cannot be read, hold no token to count, or are for another task.
    """
    if spec.forgetting is None:
        return None
    from loratlas.data.task_examples import encode_for

    asked = spec.forgetting
    rows = open_rows(
        asked.data,
        split=judged_split(asked.data, asked.split),
        mapping=asked.map or None,
        folder=spec.folder,
    )
    if (rows.form == "label") < (task.name == CLASSIFICATION):
        raise DataError(
            given=f"forgetting: {asked.data}",
            found=f"rows of form {rows.form!r}, of which a classifier has no loss",
            instead="rows of text/label with the study's own labels, or no forgetting",
        )
    loss = asked.loss if task.name == CAUSAL else "answer"
    return encode_for(task, rows, tokenizer, config=config, max_length=spec.max_length, loss=loss)


def identity(spec: StudySpec, forgetting: Encoded | None) -> dict[str, Any]:
    """What it adds to everything that decides a run's record; nothing where nothing was asked."""
    settings: dict[str, Any] = {}
    if spec.metric is not None and spec.metric.name in WRITTEN:
        settings["metric"] = spec.metric.model_dump(mode="json")
    if forgetting is not None:
        settings["forgetting"] = forgetting.digest
    return settings


def save_rows(path: Path, rows: Rows) -> None:
    """Keep rows as text for the workers."""
    from dataclasses import asdict

    path.write_text(json.dumps(asdict(rows), ensure_ascii=False), encoding="utf-8")


def load_rows(path: Path) -> Rows:
    """Read what :func:`save_rows` kept."""
    from loratlas.data.rows import Row, Rows, Turn

    kept = json.loads(path.read_text(encoding="utf-8"))
    rows = tuple(
        Row(**{**row, "turns": tuple(Turn(**turn) for turn in row["turns"])}) for row in kept.pop("rows")
    )
    kept.pop("digest", None)  # which earlier versions wrote
    return Rows(rows=rows, **kept)


class SideMetrics:
    """The worker's end: measures what was asked for, of a model that was just judged.

    Args:
        setup: the coordinator's: ``model``, ``data`` (with ``forgetting``, if asked), ``metric`` (name, rows,
            max_new_tokens and the file of the rows) or None.
        forgetting: encoded rows, or None.
    """

    def __init__(self, setup: Mapping[str, Any], forgetting: Any) -> None:
        self._metric, self._forgetting = setup.get("metric"), forgetting
        if self._metric:
            from loratlas.data.encode import load_tokenizer

            self._tokenizer = load_tokenizer(setup["model"])
            self._rows = load_rows(Path(self._metric["file"]))

    def measure(
        self, model: Any, score: Callable[[Any, Any], Any]
    ) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
        """What the record says, and the tables beside it.

        Args:
            model: bare or with its adapter.
            score: (model, encoded rows) → `loratlas.evaluation.score.Scores`.
        """
        from loratlas.evaluation.generate import samples

        record: dict[str, Any] = {}
        tables: dict[str, dict[str, np.ndarray]] = {}
        if self._forgetting is not None:
            measured = score(model, self._forgetting)
            record["forgetting"] = loss_record(measured)
            tables[FORGETTING] = {"example": measured.example, "n": measured.n, "nll": measured.nll}
        if self._metric:
            asked = self._metric
            names = _REPORTED[asked["name"]]
            measured = samples(
                model,
                self._tokenizer,
                self._rows,
                limit=asked["rows"],
                max_new_tokens=asked["max_new_tokens"],
                rouge="rouge_l" in names,
            )
            record["metric"] = {"name": names[0], "value": measured[names[0]], "rows": measured["rows"]}
            answers = measured["samples"]
            tables[METRIC] = {"example": np.array([a["row"] for a in answers], dtype=np.int64)}
            for name in names:
                key = "exact" if name == "exact_match" else name
                tables[METRIC][name] = np.array([a[key] for a in answers], dtype=np.float64)
        return record, tables


def read_metrics(folder: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rows of a run that a task metric was taken of, int64 [R], and metric → float64 [R], a score for each.

    Raises:
        OutputError: the file is missing or broken.
    """
    if (folder / PREFERENCES).exists():
        columns = {name: column.to_numpy() for name, column in _columns(folder / PREFERENCES)}
        order = np.argsort(columns["example"], kind="stable")
        margin = columns["margin"][order].astype(np.float64)
        scores = {"preference_accuracy": ahead(margin), "margin": margin}
        return columns["example"][order].astype(np.int64), scores
    if (folder / PREDICTIONS).exists():
        columns = {name: column.to_numpy() for name, column in _columns(folder / PREDICTIONS)}
        order = np.argsort(columns["example"], kind="stable")
        label, predicted = columns["label"][order], columns["predicted"][order]
        scores = {"accuracy": correct(label, predicted), "macro_f1": f1_rows(label, predicted)}
        return columns["example"][order].astype(np.int64), scores
    columns = {name: column.to_numpy() for name, column in _columns(folder / METRIC)}
    example = columns.pop("example")
    order = np.argsort(example, kind="stable")
    # Before there was a second metric, the column of the only one was called "score".
    named = {"exact_match" if name == "score" else name: column for name, column in columns.items()}
    return example[order].astype(np.int64), {
        name: column[order].astype(np.float64) for name, column in named.items()
    }


def _columns(path: Path) -> list[tuple[str, Any]]:
    read = table(path)
    return [(name, read[name]) for name in read.column_names]


def read_forgetting(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(n, nll) of a run on the rows that nothing was trained on, in their order.

    Raises:
        OutputError: the file is missing or broken.
    """
    columns = table(folder / FORGETTING)
    example, n, nll = (columns[name].to_numpy() for name in ("example", "n", "nll"))
    order = np.argsort(example, kind="stable")
    return n[order].astype(np.int64), nll[order].astype(np.float64)


def same_rows(one: np.ndarray, other: np.ndarray | None, folder: Path) -> None:
    """Refuse runs that were measured on unlike rows.

    Raises:
        OutputError: they were.
    """
    if other is not None and not np.array_equal(one, other):
        raise OutputError(
            given=str(folder),
            found="other rows than the study's other runs were measured on",
            instead="the folder as the study wrote it",
        )
