"""A study's 27 runs, three placements × three learning rates × three seeds, by three ways.

`Trainer` at its best trains them one after the other; so does this project's `fit`; and they are trained as
``loratlas study`` trains them, side by side as far as runs share a pass (`loratlas.study.inputs.fleet_sizing`). All
runs are made by every side, none is multiplied. Batches are small, for that is where company pays on a CPU; at 16 rows
a step a study trains runs one by one, and the ratio is that of the Alpaca row. Loading the base and judging are not
timed.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from statistics import mean
from typing import Any

from benchmarks.common import proofs
from benchmarks.common.bases import MINI, adapted, alpaca, base
from benchmarks.common.timing import Sample, interleaved, ratios, seconds, timed
from benchmarks.peers import ours, trainer
from benchmarks.peers.outcome import Schedule
from loratlas.data.batches.batching import training_order
from loratlas.data.batches.packing_proof import prove_packing
from loratlas.data.examples import Encoded
from loratlas.evaluation.score import score
from loratlas.placement.plan import place
from loratlas.study.inputs.fleet_sizing import runs_per_pass
from loratlas.training.fleet.train_fleet import Fleet, Member, detach_adapters
from loratlas.training.loop import fit

PLACEMENTS = ("all:8", "attention:8", "feedforward:8")
RATES = (5e-4, 1e-3, 2e-3)
SEEDS = (0, 1, 2)
TARGET = 2.5

Run = tuple[str, float, int]
"""Placement, learning rate, seed."""


def measure(*, recipe: trainer.Recipe, rounds: int, steps: int, batch: int) -> dict[str, Any]:
    """Wall clock and CPU time of all runs, ours over the peer's, and the held-out losses of every side.

    Args:
        recipe: `Trainer` at its best, as the Alpaca row found it.
        rounds: of all sides in turns.
        steps: of ``batch`` rows, per run.
        batch: rows.
    """
    data = alpaca(MINI, rows=steps * batch)
    steps = min(steps, len(data) // batch)  # rows that do not fit are dropped
    held_out = alpaca(MINI, rows=64, split="eval")
    runs = list(product(PLACEMENTS, RATES, SEEDS))
    tokens = batch * sum(len(e) for e in data.examples) / len(data)
    longest = max(len(e) for e in data.examples)
    most = runs_per_pass(tokens, "cpu")

    def judged(model: Any) -> float:
        return score(model, held_out, packed=True).token_mean_nll

    def schedule(run: Run) -> Schedule:
        return Schedule(lr=run[1], batch=batch, seed=run[2])

    def one_by_one(train: Callable[[Any, Run], Any]) -> Callable[[], tuple[Sample, list[float]]]:
        def once() -> tuple[Sample, list[float]]:
            times, losses = [], []
            for run in runs:
                model = adapted(MINI, "bfloat16", placement=run[0], seed=run[2])
                times.append(timed(lambda model=model, run=run: train(model, run))[0])
                losses.append(judged(model))
            return _sum(times), losses

        return once

    def with_trainer(model: Any, run: Run) -> None:
        order = training_order(len(data), steps=steps, batch_size=batch, seed=run[2]).reshape(-1).tolist()
        trainer.train(model, data, order, schedule(run), recipe)

    def alone(model: Any, run: Run) -> None:
        fit(model, data, ours.settings(schedule(run), dtype="bfloat16", steps=steps))

    def side_by_side() -> tuple[Sample, list[float]]:
        model, losses = base(MINI, "bfloat16"), list[float]()
        times = [timed(lambda: prove_packing(model, max_length=longest))[0]]  # once for all runs
        for start in range(0, len(runs), most):
            members = [member(run, model) for run in runs[start : start + most]]
            time, fleet = timed(lambda members=members: _trained(model, data, members))
            times.append(time)
            for number in range(len(members)):
                left = fleet.peft_model(number)
                losses.append(judged(left))
                detach_adapters(left)
        return _sum(times), losses

    def member(run: Run, model: Any) -> Member:
        wanted = ours.settings(schedule(run), dtype="bfloat16", steps=steps)
        return Member(rows=place(model.config, run[0]).rows, settings=wanted)

    sides = {
        "Trainer at its best": one_by_one(with_trainer),
        "loratlas, one by one": one_by_one(alone),
        "loratlas, as a study": side_by_side,
    }
    result = interleaved(sides, rounds=rounds)
    times = {name: [time for time, _ in side] for name, side in result.items()}
    losses = {name: side[-1][1] for name, side in result.items()}
    peer = times["Trainer at its best"]
    faults = []
    for name, values in losses.items():
        apart = abs(mean(values) - mean(losses["Trainer at its best"]))
        if apart > proofs.LOSSES:
            faults.append(f"the study's runs by {name} end {apart:.4f} nats apart from Trainer's")
    return {
        "base": MINI,
        "runs": len(runs),
        "steps": steps,
        "rows": batch,
        "tokens_per_step": round(tokens, 1),
        "side_by_side": most,
        "recipe": recipe.name,
        "target": TARGET,
        "faster": {name: ratios(peer, own) for name, own in times.items()},
        "seconds": {name: seconds(own) for name, own in times.items()},
        "nll": {name: [round(loss, 4) for loss in values] for name, values in losses.items()},
        "faults": faults,
    }


def _trained(model: Any, data: Encoded, members: list[Member]) -> Fleet:
    fleet = Fleet(model, data, members)
    fleet.fit()
    return fleet


def _sum(times: list[Sample]) -> Sample:
    return Sample(wall=sum(t.wall for t in times), cpu=sum(t.cpu for t in times))
