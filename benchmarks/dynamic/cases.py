"""Cases of the bench: a base, a task and a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.made_tasks import GENERATORS, generate
from loratlas.anatomy.sites import Anatomy
from loratlas.data.examples import Encoded
from loratlas.data.rows import Rows

MADE = "made:"
"""Prefix of the tasks that `benchmarks.common.made_tasks` makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Rows, and how long to train on them.

    Args:
        train, eval: as in a study's file; without ``eval``, held-out rows are the embedded task's own split.
        max_length: tokens of a row; longer ones lose the beginning of their prompt.
        held_out: rows that are judged on.
        batch: rows of a step.
        limit: rows read of the training file.
        skip: rows of the training file that are passed over, so that they are others than those of the task that
            begins at the first row. eval_skip: the same of the held-out file; None for an eighth of ``skip``.
    """

    train: str
    eval: str | None = None
    max_length: int = 128
    held_out: int = 200
    batch: int = 16
    limit: int = 8000
    skip: int = 0
    eval_skip: int | None = None


def _shared(name: str, **more: Any) -> Task:
    folder = "${LORATLAS_SHARED}/data/" + name
    return Task(train=f"{folder}_train.jsonl.gz", eval=f"{folder}_eval.jsonl.gz", **more)


TASKS: Mapping[str, Task] = {
    "nl2bash": _shared("nl2bash", max_length=96),
    "alpaca": _shared("alpaca", max_length=128),
    "gsm8k": _shared("gsm8k", max_length=256),
    "e2e": _shared("e2e", max_length=128),
    "facts-300": Task(train="demo:facts-300"),
    "facts-3000": Task(train="demo:facts-3000"),
    "retrieval": Task(train="demo:retrieval"),
    "rules": Task(train="demo:rules"),
    "format": Task(train="demo:format"),
    "sst2": _shared("sst2", max_length=96),
    "alpaca-later": _shared("alpaca", max_length=128, skip=8000),
    "e2e-later": _shared("e2e", max_length=128, skip=8000),
    "alpaca-last": _shared("alpaca", max_length=128, skip=24_000, eval_skip=400),
    "e2e-last": _shared("e2e", max_length=128, skip=24_000, eval_skip=2500),
    "nl2bash-later": _shared("nl2bash", max_length=96, skip=8000, eval_skip=500),
    **{name: Task(train=MADE + name, limit=4000, max_length=192) for name in GENERATORS},
}
"""By name; rows of ``made:…`` come from `benchmarks.common.made_tasks`."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One base, task and budget.

    Args:
        base: as the command line takes it. task: a name in `TASKS`. budget: that every arm spends.
        batch, held_out: instead of the task's.
    """

    base: str
    task: str
    budget: str = "like=all:1"
    batch: int | None = None
    held_out: int | None = None

    @property
    def name(self) -> str:
        """As files are called.

        >>> Case(base="demo:llama-mini", task="e2e").name
        'llama-mini-e2e-all1'
        """
        base = Path(self.base.split(":", 1)[-1]).name
        return "-".join((base, self.task, self.budget.removeprefix("like=").replace(":", "")))

    @property
    def rows(self) -> Task:
        """The task, with what this case does otherwise."""
        task = TASKS[self.task]
        return replace(task, batch=self.batch or task.batch, held_out=self.held_out or task.held_out)


class Opened:
    """A case with its base and rows in memory.

    Args:
        case: which.
        device: where the base computes.

    Attributes:
        model: the bare base. anatomy: of it. train, held_out: encoded rows. packed: whether they may be packed.
    """

    def __init__(self, case: Case, *, device: str = "cpu") -> None:
        from loratlas.data.batches.packing_proof import prove_packing
        from loratlas.data.encode import encode, load_tokenizer
        from loratlas.sources import model_source, open_model, read

        self.case, task = case, case.rows
        self.anatomy: Anatomy = read(case.base)
        self.model: Any = open_model(case.base, dtype="bfloat16").to(device)
        tokenizer = load_tokenizer(model_source(case.base))
        tokenizer.chat_template = (
            None  # prompt and completion as they are: a template costs half of a short row
        )
        rows, held_out = _rows_of(task)
        self.train: Encoded = encode(rows, tokenizer, max_length=task.max_length)
        self.held_out: Encoded = encode(held_out, tokenizer, max_length=task.max_length)
        self.packed: bool = prove_packing(self.model, max_length=task.max_length).exact

    @cached_property
    def tokens(self) -> np.ndarray:
        """Counted tokens of every held-out example [N]."""
        return np.array([int(example.labelled[1:].sum()) for example in self.held_out.examples])

    def evaluate(self, model: Any) -> np.ndarray:
        """Summed loss of every held-out example [N], nats."""
        from loratlas.evaluation.score import score

        return score(model, self.held_out, packed=self.packed).nll


def _rows_of(task: Task) -> tuple[Rows, Rows]:
    """Rows to train on, and held-out ones."""
    from loratlas.sources import open_rows

    if task.train.startswith(MADE):
        name = task.train.removeprefix(MADE)
        return (
            open_rows(generate(name, split="train", rows=task.limit)),
            open_rows(generate(name, split="eval", rows=task.held_out)),
        )
    train = _after(task.train, task.skip, task.limit)
    if task.eval is None:
        return train, open_rows(task.train, split="eval", limit=task.held_out)
    passed = task.skip // 8 if task.eval_skip is None else task.eval_skip
    return train, _after(task.eval, passed, task.held_out)


def _after(source: str, skip: int, limit: int) -> Rows:
    """So many rows of a file, after those that are passed over."""
    from loratlas.sources import open_rows

    rows = open_rows(source, limit=skip + limit)
    return replace(rows, rows=rows.rows[skip:])
