"""What a study measures beside the loss, where its file asks for it: the task itself, and what is forgotten.

Both are taken of the bare base once and of every evaluation run after its last step, on rows that are the same for
all arms. They change nothing about the training. Each leaves a table in the run's folder and its mean in the record.

A further task metric is one more entry in :data:`METRICS` and one more name in the spec's `MetricSpec`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loratlas.errors import OutputError, SpecError
from loratlas.study.inputs import DEMO, open_rows
from loratlas.study.ranks import Measure
from loratlas.study.records import table

if TYPE_CHECKING:
    from loratlas.data.encode import Encoded
    from loratlas.data.rows import Rows
    from loratlas.study.spec import StudySpec

METRIC, FORGETTING = "metric.parquet", "forgetting.parquet"
"""Tables in a run's folder."""

Scored = tuple[np.ndarray, np.ndarray]
"""Indices of evaluation rows, int64 [R], and their scores, float64 [R]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A task metric.

    Args:
        measure: how it ranks arms: name, unit, direction.
        score: (model, tokenizer, rows, limit, max_new_tokens) → a score for every row that could be answered.
        words: what it is, for people.
    """

    measure: Measure
    score: Callable[[Any, Any, Rows, int, int], Scored]
    words: str


def _exact(model: Any, tokenizer: Any, rows: Rows, limit: int, max_new_tokens: int) -> Scored:
    from loratlas.evaluation.generate import samples

    found = samples(model, tokenizer, rows, limit=limit, max_new_tokens=max_new_tokens)["samples"]
    places = np.array([sample["row"] for sample in found], dtype=np.int64)
    return places, np.array([sample["exact"] for sample in found], dtype=np.float64)


METRICS = {
    "exact_match": Metric(
        measure=Measure(name="exact_match", unit="share", higher_is_better=True),
        score=_exact,
        words="share of the rows whose greedy answer is exactly the wanted one",
    ),
}


def asked_rows(spec: StudySpec, rows: Rows, evaluation: Encoded) -> Rows | None:
    """The first evaluation rows, as text, numbered by their place among the evaluation rows.

    Raises:
        SpecError: a metric is asked for, and these rows have no prompt to answer.
    """
    if spec.metric is None:
        return None
    if rows.form == "text":
        raise SpecError(
            given=f"metric: {spec.metric.name}",
            found=f"{rows.source}, raw text without prompts to answer",
            instead="rows with prompts and answers, or no metric",
        )
    chosen = evaluation.examples[: spec.metric.rows]
    numbered = (replace(rows.rows[example.row], source_row=place) for place, example in enumerate(chosen))
    return replace(rows, rows=tuple(numbered))


def forgetting_rows(spec: StudySpec, tokenizer: Any, config: Any) -> Encoded | None:
    """All rows of the source that nothing is trained on.

    Raises:
        DataError: they cannot be read, or hold no token to count.
    """
    if spec.forgetting is None:
        return None
    from loratlas.data.encode import check_positions, encode

    asked = spec.forgetting
    rows = open_rows(
        asked.data,
        split=asked.split or ("eval" if asked.data.startswith(DEMO) else None),
        mapping=asked.map or None,
        folder=spec.folder,
    )
    whole = encode(rows, tokenizer, max_length=spec.max_length, loss=asked.loss)
    check_positions(whole, config)
    return whole


def identity(spec: StudySpec, forgetting: Encoded | None) -> dict[str, Any]:
    """What it adds to everything that decides a run's record; nothing where nothing was asked."""
    found: dict[str, Any] = {}
    if spec.metric is not None:
        found["metric"] = spec.metric.model_dump(mode="json")
    if forgetting is not None:
        found["forgetting"] = forgetting.digest
    return found


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
    return Rows(rows=rows, **kept)


class Beside:
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
            score: (model, encoded rows) → `loratlas.evaluation.tokens.Scores`.
        """
        record: dict[str, Any] = {}
        tables: dict[str, dict[str, np.ndarray]] = {}
        if self._forgetting is not None:
            found = score(model, self._forgetting)
            record["forgetting"] = {
                "nll": float(found.nll.sum() / found.n.sum()),
                "tokens": int(found.n.sum()),
                "rows": len(found.n),
            }
            tables[FORGETTING] = {"example": found.example, "n": found.n, "nll": found.nll}
        if self._metric:
            asked = self._metric
            places, scores = METRICS[asked["name"]].score(
                model, self._tokenizer, self._rows, asked["rows"], asked["max_new_tokens"]
            )
            record["metric"] = {
                "name": asked["name"],
                "value": float(scores.mean()) if len(scores) else None,
                "rows": len(scores),
            }
            tables[METRIC] = {"example": places, "score": scores}
        return record, tables


def read_metric(folder: Path) -> Scored:
    """(example, score) of a run, in the order of ``example``.

    Raises:
        OutputError: the file is missing or broken.
    """
    found = table(folder / METRIC)
    example, score = (found[name].to_numpy() for name in ("example", "score"))
    order = np.argsort(example, kind="stable")
    return example[order].astype(np.int64), score[order].astype(np.float64)


def read_forgetting(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(n, nll) of a run on the rows that nothing was trained on, in their order.

    Raises:
        OutputError: the file is missing or broken.
    """
    found = table(folder / FORGETTING)
    example, n, nll = (found[name].to_numpy() for name in ("example", "n", "nll"))
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
