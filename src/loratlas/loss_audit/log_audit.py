"""The audit of logs: as many passes of a model over rows as it takes to explain the numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from loratlas.evaluation.class_losses import classify
from loratlas.evaluation.score import score
from loratlas.loss_audit.audit_passes import Subject, further
from loratlas.loss_audit.definitions import REFERENCE, LossEvidence
from loratlas.loss_audit.log_numbers import Log
from loratlas.loss_audit.match_logs import Explained, by_example, explain
from loratlas.loss_audit.text_units import Texts
from loratlas.loss_audit.token_table import LossTable, require_finite, table_of

OPEN = ("not reproduced", "consistent")
"""Verdicts that a further pass may change."""


@dataclass(kw_only=True)
class LogAudit:
    """Numbers of logs, and the tables that have been measured to explain them.

    Args:
        logs: what was read.
        scratch: folder for tables, which may be removed afterwards.
        max_length: of the rows, in tokens.
        dtype: that the reference pass computes in.
        batch_sizes: known ones.
        smoothing: ε's to try.
        tolerance: see `loratlas.loss_audit.match_logs.explain`.
        window, stride: of windows to try, in tokens.
        texts: sizes of the rows' texts, for units that need them.
        on_pass: called before each pass with its number and words.
    """

    logs: Sequence[Log]
    scratch: Path
    max_length: int
    dtype: str
    batch_sizes: tuple[int, ...] = ()
    smoothing: tuple[float, ...] = (0.1,)
    tolerance: float | None = None
    window: int | None = None
    stride: int | None = None
    texts: Texts | None = None
    on_pass: Callable[[int, str], None] = lambda number, words: None
    tables: dict[str, LossTable] = field(default_factory=dict)
    rough: list[str] = field(default_factory=list)
    passes: list[str] = field(default_factory=list)
    explained: list[list[Explained]] = field(default_factory=list)
    regularisers: dict[str, float] = field(default_factory=dict)

    @property
    def open(self) -> bool:
        """Whether a number is left that a further pass might explain."""
        return any(one.verdict in OPEN for each in self.explained for one in each)

    @property
    def evidence(self) -> LossEvidence:
        """Everything measured so far."""
        return LossEvidence(tables=self.tables, texts=self.texts)

    @property
    def _sizes(self) -> tuple[int, ...]:
        return self.batch_sizes or next((log.batch_sizes for log in self.logs if log.batch_sizes), ())

    def reference(self, of: Subject) -> None:
        """The first pass: every token, each example alone and whole."""
        self._begin("each example alone and whole")
        table = of.table(self.scratch / REFERENCE, uniform=True)
        self.regularisers = of.regularisers(self._sizes)
        self._enter(REFERENCE, table, rough=self.dtype != "float32")

    def task(self, of: Subject) -> None:
        """The only pass of a classifier or an encoder-decoder, whose loss is that of labels or of targets."""
        if of.encoded.task.labels:
            self._begin("the label of each row")
            table = LossTable.of_scores(classify(of.model, of.encoded).scores)
        else:
            self._begin("the target of each row")
            tokens = score(of.model, of.encoded, packed=False).tokens
            assert tokens is not None  # not streamed
            table = table_of(tokens)
        require_finite(table, table.covered(("answer", "end")))
        self._enter(REFERENCE, table, rough=self.dtype != "float32")

    def other_adapter(self, of: Subject, name: str) -> None:
        """The reference pass with another adapter."""
        self._begin(f"with the {name}")
        table = of.table(self.scratch / f"adapter-{len(self.tables)}")
        self._enter(name, replace(table, condition=name))

    def more(self, of: Subject, *, adapted: bool) -> None:
        """Passes under other conditions, until nothing is left to explain."""
        plan = further(
            of, dtype=self.dtype, adapted=adapted, sizes=self._sizes, window=self.window, stride=self.stride
        )
        for one in plan:
            if not self.open:
                return
            self._begin(one.words)
            table = one.take(of, self.scratch / one.name, max_length=self.max_length)
            self._enter(one.name, table, rough=one.rough)

    def to_json(self, *, rows: int, remarks: Callable[[Log], list[str]]) -> dict[str, Any]:
        """Plain data: ``passes`` and ``logs``.

        Args:
            rows: examples that were scored.
            remarks: what can be said of a log without any number.
        """
        evidence = self.evidence
        lists = [by_example(log, evidence) for log in self.logs]
        return {
            "passes": self.passes,
            "logs": [
                {
                    "tool": log.tool,
                    "path": str(log.path),
                    "settings": dict(log.settings),
                    "missing": [asdict(setting) for setting in log.missing],
                    "numbers": [one.to_json(evidence) for one in each],
                    "examples": None if examples is None else asdict(examples),
                    "remarks": [*_other_rows(log, rows), *remarks(log)],
                }
                for log, each, examples in zip(self.logs, self.explained, lists, strict=True)
            ],
        }

    def _begin(self, words: str) -> None:
        self.passes.append(words)
        self.on_pass(len(self.passes), words)

    def _enter(self, name: str, table: LossTable, *, rough: bool = False) -> None:
        self.tables[name] = table
        if rough:
            self.rough.append(name)
        self.explained = [
            explain(
                log,
                self.evidence,
                batch_sizes=self.batch_sizes,
                smoothing=self.smoothing,
                tolerance=self.tolerance,
                rough=self.rough,
                regularisers=self.regularisers,
            )
            for log in self.logs
        ]


def _other_rows(log: Log, rows: int) -> list[str]:
    """Counts of a log that are not those of the rows."""
    remarks = []
    for name, words in (("examples", "examples in the list"), ("eval_samples", "evaluation rows in the log")):
        count = log.settings.get(name)
        if isinstance(count, (int, float)) and int(count) != rows:
            remarks.append(f"{int(count):,} {words}, {rows:,} rows here: not the same rows.")
    return remarks
