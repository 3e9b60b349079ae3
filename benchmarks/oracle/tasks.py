"""Tasks of the bench, each at a length at which placement can matter, and the sizes in which the bench runs.

Steps are set by a pilot (`tools/pilot.py`): LoRA of rank 1 everywhere should close 40–80 % of the way from the bare
base to full fine-tuning. Real rows are no part of the project: set LORATLAS_SHARED to the folder that holds data/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

RATES = (0.005, 0.008, 0.0125, 0.02, 0.03125)
"""A factor of 1.6 apart. With 2.5, arms whose best rate lies on the grid beat better ones whose best rate does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Rows and how long to train on them.

    Args:
        train, eval: as in a study's file.
        steps: of 16 rows. of_base: the same for bases that need another length, by name.
        max_length: tokens of a row.
        rates: candidates of the learning rate, the same for every arm.
        limit: rows read of the training file.
    """

    train: str
    eval: str | None = None
    steps: int
    of_base: Mapping[str, int] = field(default_factory=dict)
    max_length: int = 128
    rates: tuple[float, ...] = RATES
    limit: int | None = None

    def steps_on(self, base: str) -> int:
        """Steps on a base, by its name or path."""
        return self.of_base.get(Path(base).name, self.steps)


def _real(name: str, **more: int) -> Task:
    shared = "${LORATLAS_SHARED}/data/" + name
    return Task(train=f"{shared}_train.jsonl.gz", eval=f"{shared}_eval.jsonl.gz", **more)  # pyright: ignore[reportArgumentType]


TASKS: dict[str, Task] = {
    "alpaca": _real("alpaca", steps=100, max_length=192, limit=6000),
    "nl2bash": _real("nl2bash", steps=14, limit=6000),
    "facts-300": Task(train="demo:facts-300", steps=200),
    "retrieval": Task(train="demo:retrieval", steps=6, of_base={"gpt2-mini": 16}),
    "gsm8k": _real("gsm8k", steps=8, max_length=256, limit=6000),
    "e2e": _real("e2e", steps=16, limit=6000),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of the bench.

    Args:
        bases: models. tasks: names in `TASKS`. budgets: what every choice spends, as ``like=…``.
        screening: seeds that tune the rate and screen the arms; judging: fresh seeds.
        rates: how many candidates around the middle of the task's; None for all.
        steps: instead of the task's own.
        tuning_rows, rows: rows that are screened and judged on.
        roles: single roles in all layers as choices. pairs: the same in two layers at a time.
        hybrids: attention in one half of the layers with feed-forward in the other, and the like.
        randoms: random plans.
        rules: names in `benchmarks.oracle.rules.RULES`.
        scan_rows: rows that signals read at most.
    """

    bases: tuple[str, ...] = ("demo:llama-mini",)
    tasks: tuple[str, ...]
    budgets: tuple[str, ...] = ("like=all:1",)
    screening: int = 1
    judging: int = 3
    extensions: int = 1
    steps: int | None = None
    tuning_rows: int = 256
    rows: int = 400
    roles: bool = True
    pairs: bool = False
    hybrids: bool = False
    randoms: int = 3
    rules: tuple[str, ...]
    scan_rows: int = 128


PUBLISHED = ("eva", "plop", "kappatune", "energy", "adalora")
OURS = (
    "gradient",
    "probe",
    "probe_norm",
    "probe_energy",
    "probe_descent",
    "probe_yield",
    "activation",
    "alignment",
    "attention",
    "spectrum",
)

SIZES = {
    "cpu": Size(tasks=("retrieval", "nl2bash", "e2e", "facts-300", "alpaca"), rules=(*PUBLISHED, *OURS)),
    "full": Size(
        bases=("demo:llama-mini", "bases/gpt2-mini"),
        tasks=tuple(TASKS),
        budgets=("like=all:1", "like=all:8"),
        screening=2,
        judging=5,
        extensions=2,
        rows=1000,
        pairs=True,
        hybrids=True,
        randoms=10,
        rules=(*PUBLISHED, *OURS),
    ),
    "minute": Size(
        tasks=("retrieval",),
        judging=2,
        extensions=0,
        steps=2,
        tuning_rows=20,
        rows=24,
        roles=False,
        randoms=2,
        rules=("gradient", "eva", "plop"),
        scan_rows=32,
    ),
}
