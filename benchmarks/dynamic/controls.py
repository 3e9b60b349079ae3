"""Is it the place, the path, or the pause? Controls of placement inside a run, and data that shifts in mid-run.

    LORATLAS_SHARED=../shared python -m benchmarks.dynamic.controls --work WORK \\
        --out benchmarks/results/moving/controls.json

All arms of a base share steps, rows, rate, seeds and final parameters (all:1), and are compared seed by seed with
``all``, whose adapters stay:

- ``auto``: the default policy decides at the end of the head; ``auto, moments anew``: its optimizer remembers nothing
  of the steps before, where `auto` carries Adam's moments through the moves.
- ``all, optimizer reset``: nothing moves, but the optimizer begins anew at that step: the price of the pause alone.
- ``random``: as many moves, at the same step, between sites that the seed draws.
- ``auto's last plan, from scratch``: the ranks that `auto` ended with, trained from the first step: the place without
  the path.

*Shift*: the first steps see rows of Alpaca, the others nl2bash, and the loss is of nl2bash. ``auto``'s head is over
when the data shift; ``auto, every tenth step`` decides until half of the run, after the shift; ``all`` stands still.

Every run is one line of WORK/runs.jsonl: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.common import machine
from benchmarks.common.kept_runs import KeptRuns
from benchmarks.dynamic.cases import Case, Opened
from loratlas.adapters.resize import ranks_of
from loratlas.data.batches.batching import training_order
from loratlas.data.examples import Encoded
from loratlas.dynamic.controller import PlacementController
from loratlas.dynamic.decision_schedule import DecisionSchedule
from loratlas.dynamic.policies.known_policies import DEFAULT, policy_named
from loratlas.files import write_json
from loratlas.placement.plan import Plan, place
from loratlas.training.fleet.train_fleet import detach_adapters
from loratlas.training.loop import fit
from loratlas.training.run_hooks import RunHook
from loratlas.training.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
BASES = {"llama-mini": "demo:llama-mini", "gpt2-mini": str(ROOT / "bases/gpt2-mini")}
REFERENCE, BUDGET, BATCH, HEAD = "all", "all:1", 16, 0.1
RATES = {"llama-mini": 0.012, "gpt2-mini": 0.008}
"""Near the best of ``all`` on nl2bash (benchmarks/results/placement)."""
SHIFT = 0.3
"""Share of the steps that see Alpaca first."""

RUN = ("base", "scenario", "arm", "steps", "seed")
"""What says which run it is."""

Hooks = Callable[[Plan], list[RunHook]]


def deciding(kind: type[PlacementController], policy: str, *, every: int | None = None) -> Hooks:
    """A controller at the budget of the plan it begins with."""
    return lambda plan: [
        kind(
            [row.site for row in plan.rows],
            policy_named(policy),
            budget=plan.trainable,
            schedule=DecisionSchedule(head=HEAD, every=every),
        )
    ]


class MomentsAnew(PlacementController):
    """A decision after which the optimizer remembers nothing."""

    def after_step(self, run: Any, event: Any) -> None:
        known = len(self.decisions)
        super().after_step(run, event)
        if len(self.decisions) > known:
            run.optimizer.rebuild({}, run.counters.done)


class OptimizerReset(RunHook):
    """Lets the optimizer begin anew where a head would end, and moves nothing."""

    name = "optimizer reset"

    def after_step(self, run: Any, event: Any) -> None:
        if event.step == round(HEAD * run.steps):
            run.optimizer.rebuild({}, run.counters.done)


STILL: dict[str, Hooks] = {
    REFERENCE: lambda plan: [],
    "all, optimizer reset": lambda plan: [OptimizerReset()],
    "auto": deciding(PlacementController, DEFAULT),
    "auto, moments anew": deciding(MomentsAnew, DEFAULT),
    "random": deciding(PlacementController, "random"),
    "random, moments anew": deciding(MomentsAnew, "random"),
}
SCRATCH = "auto's last plan, from scratch"
SHIFTED: dict[str, Hooks] = {
    REFERENCE: lambda plan: [],
    "auto": deciding(PlacementController, DEFAULT),
    "auto, every tenth step": deciding(PlacementController, DEFAULT, every=10),
    "gradient, every tenth step": deciding(PlacementController, "gradient", every=10),
    "random, every tenth step": deciding(PlacementController, "random", every=10),
}


def shifted(first: Encoded, then: Encoded, *, steps: int, seed: int) -> Encoded:
    """As many rows as a run of this seed sees, such that it sees those of ``first`` first."""
    order = training_order(steps * BATCH, steps=steps, batch_size=BATCH, seed=seed).ravel()
    before = round(SHIFT * steps) * BATCH
    stream = [*first.examples[:before], *then.examples[: len(order) - before]]
    examples: list[Any] = [None] * len(order)
    for at, example in zip(order, stream, strict=True):
        examples[at] = example
    return replace(then, examples=examples)


def train(
    opened: Opened, rows: Encoded, plan: Plan, hooks: list[RunHook], *, steps: int, rate: float, seed: int
) -> Any:
    """One run: held-out losses of its end, and what moved."""
    settings = Settings(
        steps=steps, lr=rate, batch_size=BATCH, seed=seed, dtype="bfloat16", compile="off", save_every=10**6
    )
    model = plan.attach(opened.model, seed=seed)
    try:
        fit(model, rows, settings, hooks=hooks, packed=opened.packed)
        nll = opened.evaluate(model)
        last = ranks_of(model)
    finally:
        opened.model = detach_adapters(model)
    moves = [move for hook in hooks for move in getattr(hook, "moves", ())]
    return {
        "nll": float(nll.sum() / opened.tokens.sum()),
        "moves": len(moves),
        "ranks": {row.site.path: last.get(row.site.module, 0) for row in plan.rows},
        "trainable": sum(row.site.lora_parameters(last.get(row.site.module, 0)) for row in plan.rows),
    }


class Bench:
    """All runs of one base.

    Args:
        base: a name in `BASES`. runs: that are known. steps, seeds: of every arm.
    """

    def __init__(self, base: str, runs: KeptRuns, *, steps: int, seeds: Sequence[int]) -> None:
        self.base, self.runs, self.steps, self.seeds = base, runs, steps, seeds
        self.opened = Opened(Case(base=BASES[base], task="nl2bash"))
        self.first = Opened(Case(base=BASES[base], task="alpaca")).train
        self.plan = place(self.opened.anatomy, BUDGET)

    def rows(self, scenario: str, seed: int) -> Encoded:
        """What a run of this seed trains on."""
        if scenario == "shift":
            return shifted(self.first, self.opened.train, steps=self.steps, seed=seed)
        return self.opened.train

    def one(self, scenario: str, arm: str, hooks: Hooks, seed: int, plan: Plan) -> dict[str, Any]:
        """A run, trained if it is not known."""
        run = {"base": self.base, "scenario": scenario, "arm": arm, "steps": self.steps, "seed": seed}

        def trained() -> dict[str, Any]:
            rows, rate = self.rows(scenario, seed), RATES[self.base]
            result = train(self.opened, rows, plan, hooks(plan), steps=self.steps, rate=rate, seed=seed)
            print(*run.values(), f"{result['nll']:.4f}, {result['moves']} moves", flush=True)
            return result

        return self.runs.get(run, trained)

    def arms(self, scenario: str, arms: dict[str, Hooks]) -> dict[str, list[dict[str, Any]]]:
        """Every arm on every seed."""
        return {
            arm: [self.one(scenario, arm, hooks, seed, self.plan) for seed in self.seeds]
            for arm, hooks in arms.items()
        }

    def from_scratch(self, decided: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The ranks that runs ended with, trained from the first step on, on the same seeds."""
        listed = []
        for seed, run in zip(self.seeds, decided, strict=True):
            text = " + ".join(f"{path}:{rank}" for path, rank in run["ranks"].items() if rank)
            plan = place(self.opened.anatomy, text)
            listed.append(self.one("one task", SCRATCH, STILL[REFERENCE], seed, plan))
        return listed


def compared(losses: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Each arm minus the reference, seed by seed."""
    reference = [run["nll"] for run in losses[REFERENCE]]
    listed = []
    for arm, runs in losses.items():
        differences = [run["nll"] - other for run, other in zip(runs, reference, strict=True)]
        listed.append(
            {
                "arm": arm,
                "nll": mean(run["nll"] for run in runs),
                "moves": [run["moves"] for run in runs],
                "trainable": [run["trainable"] for run in runs],
                "minus_all": mean(differences),
                "standard_error": stdev(differences) / len(differences) ** 0.5,
                "by_seed": differences,
            }
        )
    return listed


def main() -> None:
    """Train what is missing, write one file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bases", nargs="+", choices=BASES, default=list(BASES))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    runs, scenarios = KeptRuns(asked.work / "runs.jsonl", RUN), []
    for base in asked.bases:
        bench = Bench(base, runs, steps=asked.steps, seeds=asked.seeds)
        still = bench.arms("one task", STILL)
        still[SCRATCH] = bench.from_scratch(still["auto"])
        moved = bench.arms("shift", SHIFTED)
        for name, losses in (("one task", still), ("shift", moved)):
            scenarios.append(
                {
                    "base": base,
                    "scenario": name,
                    "steps": asked.steps,
                    "lr": RATES[base],
                    "arms": compared(losses),
                }
            )
        write_json(
            asked.out,
            {
                "schema": "loratlas.bench.controls",
                "version": 1,
                "task": "nl2bash",
                "shift": SHIFT,
                "seeds": asked.seeds,
                "scenarios": scenarios,
                "machine": machine.machine(),
                "versions": machine.versions(),
                "revision": machine.revision(),
                "command": f"python -m benchmarks.dynamic.controls {' '.join(sys.argv[1:])}",
            },
        )


if __name__ == "__main__":
    main()
