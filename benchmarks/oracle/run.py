"""Cases of the bench: one study for each base, task and budget, in `loratlas study`'s own ledger.

Killed anywhere, the same command goes on: scan and choices are kept in files, runs in the ledger.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.oracle.choices import REFERENCE, Choice, choices, keep, kept
from benchmarks.oracle.rules import Given, run_adalora, signals_of
from benchmarks.oracle.tasks import TASKS, Size
from loratlas.scan.run_scan import scan
from loratlas.scan.scores import Scan, load_scan
from loratlas.study.spec.spec_file import parse_spec
from loratlas.study.spec.study_spec import StudySpec

SEED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One base, task and budget.

    Args:
        base, task, budget: which. folder: where it is kept.
    """

    base: str
    task: str
    budget: str
    folder: Path

    @property
    def name(self) -> str:
        """As told in tables."""
        return f"{base_name(self.base)} {self.task} {self.budget.removeprefix('like=')}"


def base_name(base: str) -> str:
    """A base without where it lies.

    >>> base_name("demo:llama-mini"), base_name("bases/gpt2-mini")
    ('llama-mini', 'gpt2-mini')
    """
    return Path(base.removeprefix("demo:")).name


def cases(size: Size, out: Path) -> list[Case]:
    """All cases of a size, in order."""
    found = []
    for base in size.bases:
        for budget in size.budgets:
            for task in size.tasks:
                words = (base_name(base), task, budget.removeprefix("like="))
                name = "-".join(word.replace(":", "") for word in words)
                found.append(Case(base=base, task=task, budget=budget, folder=out / name))
    return found


def prepare(case: Case, size: Size) -> tuple[Scan, dict[str, Choice]]:
    """The scan and the choice set of a case, made at the first call and read at later ones."""
    from loratlas.anatomy.read import read
    from loratlas.data.encode import encode, load_tokenizer
    from loratlas.sources import model_source, open_model, open_rows

    case.folder.mkdir(parents=True, exist_ok=True)
    scanned, chosen = case.folder / "scan.json", case.folder / "choices.json"
    if scanned.exists() and chosen.exists():
        return load_scan(scanned), kept(chosen)
    task, source = TASKS[case.task], model_source(case.base)
    anatomy = read(source)
    rows = encode(open_rows(task.train, limit=task.limit), load_tokenizer(source), max_length=task.max_length)
    model = open_model(case.base, dtype="bfloat16")
    found = scan(model, anatomy, rows, signals=signals_of(size.rules), most_rows=size.scan_rows, seed=SEED)
    given = Given(
        anatomy=anatomy,
        scan=found,
        budget=case.budget,
        adalora=lambda: run_adalora(open_model(case.base, dtype="float32"), anatomy, rows, seed=SEED),
    )
    made = choices(given, size, seed=SEED)
    scanned.write_text(json.dumps(found.to_json()) + "\n", encoding="utf-8")
    keep(chosen, made)
    return found, made


def spec_of(case: Case, size: Size, made: Mapping[str, Choice]) -> StudySpec:
    """The study that trains the choices of a case."""
    task = TASKS[case.task]
    data: dict[str, Any] = {"train": task.train, "limit": task.limit}
    if task.eval is not None:
        data["eval"] = task.eval
    return parse_spec(
        {
            "name": f"oracle {case.name}",
            "model": case.base,
            "data": data,
            "arms": {name: choice.placement for name, choice in made.items() if choice.same_as is None},
            "reference": REFERENCE,
            "learning_rates": list(task.rates),
            "tuning": {"seeds": size.screening, "rows": size.tuning_rows, "extensions": size.extensions},
            "evaluation": {"seeds": size.judging, "rows": size.rows},
            "steps": size.steps or task.steps_on(case.base),
            "max_length": task.max_length,
            "dtype": "bfloat16",
            "seed": SEED,
            # Fewer tuning seeds than a study asks for: single findings stay undetermined, regret is pooled.
            "demonstration": True,
        }
    )


def train(
    case: Case,
    size: Size,
    made: Mapping[str, Choice],
    *,
    workers: int | None = None,
    say: Callable[[str], None] = print,
) -> Any:
    """Do what is missing of a case's study."""
    from loratlas.study.run_study import run_study

    spec = spec_of(case, size, made)
    runs = len(spec.arms) * (len(spec.learning_rates) * size.screening + size.judging)
    say(f"{case.name}: {len(spec.arms)} plans, about {runs} runs of {spec.steps} steps")
    told = {"at": -1}

    def on_event(event: Any) -> None:
        if event.kind == "finished" and event.done // 10 != told["at"]:
            told["at"] = event.done // 10
            left = f", {event.seconds_left / 60:.0f} min left" if event.seconds_left else ""
            say(f"{case.name}: {event.done}/{event.planned} runs{left}")

    return run_study(spec, case.folder / "study", workers=workers, on_event=on_event)


def run(
    size: Size, out: Path, *, workers: int | None = None, say: Callable[[str], None] = print
) -> Iterator[tuple[Case, Scan, dict[str, Choice], Any]]:
    """Do what is missing, case by case; yields each case with its scan, its choices and its study's result."""
    for case in cases(size, out):
        found, made = prepare(case, size)
        yield case, found, made, train(case, size, made, workers=workers, say=say)
