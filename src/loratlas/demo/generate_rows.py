"""The embedded tasks by name.

============  ===============================  ==============================  ===================
task          what it asks                     new in evaluation               ability
============  ===============================  ==============================  ===================
facts-300     new facts about invented names   the wording, not the facts      memory
facts-1000    the same, more of them
facts-3000    the same, more of them
retrieval     a value listed in the prompt     names and lists                 looking up
rules         a code, word by word             the combinations of words       a mapping
format        a strict frame                   names; a declared tie           nothing but format
============  ===============================  ==============================  ===================

All sentences are made here, from a seed: the same name, seed, split and number of rows give the same
rows in every process.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial

from loratlas.data.rows import Row, Rows, Turn
from loratlas.demo import facts, retrieval, rules, strict
from loratlas.errors import DataError

SPLITS = ("train", "eval")

# Unbounded tasks need a size when none is asked for.
_TRAIN_ROWS, _EVAL_ROWS = 8000, 2000

Pairs = list[tuple[str, str]]


def _unbounded(make: Callable[..., Pairs]) -> Callable[..., Pairs]:
    def pairs(*, seed: int, split: str, rows: int | None) -> Pairs:
        if rows is None:
            rows = _TRAIN_ROWS if split == "train" else _EVAL_ROWS
        return make(seed=seed, split=split, rows=rows)

    return pairs


TASKS: dict[str, Callable[..., Pairs]] = {
    "facts-300": partial(facts.pairs, 300),
    "facts-1000": partial(facts.pairs, 1000),
    "facts-3000": partial(facts.pairs, 3000),
    "retrieval": _unbounded(retrieval.pairs),
    "rules": _unbounded(rules.pairs),
    "format": _unbounded(strict.pairs),
}


def generate(name: str, *, seed: int = 0, split: str = "train", rows: int | None = None) -> Rows:
    """The rows of an embedded task.

    Args:
        name: one of TASKS, with or without the prefix ``demo:``.
        seed: draws what the task is about (facts, names, rules) and the order; train and eval of one task
            belong together only with the same seed.
        split: ``train`` or ``eval``.
        rows: how many; None is the task's own number.

    Returns:
        Rows of two turns, user and assistant.

    Raises:
        DataError: no such task or split, or fewer than one row.

    >>> rows = generate("retrieval", split="eval", rows=2)
    >>> [turn.role for turn in rows.rows[0].turns]
    ['user', 'assistant']
    """
    plain = name.removeprefix("demo:")
    if plain not in TASKS:
        near = get_close_matches(plain, TASKS, n=1, cutoff=0.0)[0]
        raise DataError(
            given=f"the embedded task {name!r}",
            found="the embedded tasks are " + ", ".join(f"demo:{task}" for task in TASKS),
            instead=f"demo:{near}",
        )
    if split not in SPLITS:
        raise DataError(
            given=f"split {split!r} of {name}",
            found="embedded tasks have train and eval",
            instead="train or eval",
        )
    if rows is not None and rows < 1:
        raise DataError(
            given=f"{rows} rows of {name}", found="no row to generate", instead="a number of at least 1"
        )
    made = tuple(
        Row(
            turns=(Turn(role="user", content=prompt), Turn(role="assistant", content=answer)),
            source_row=index,
        )
        for index, (prompt, answer) in enumerate(TASKS[plain](seed=seed, split=split, rows=rows))
    )
    source = f"demo:{plain} [{split}, seed {seed}]"
    return Rows(rows=made, form="prompt", source=source)
