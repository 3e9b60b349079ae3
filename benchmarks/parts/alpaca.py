"""End to end on Alpaca: labelled tokens trained per second, over identical rows, beside Trainer and SFTTrainer.

Every side trains a fresh adapter from the same numbers on the same rows for the same steps. Of a peer's candidates for
its best one run each decides which takes part. A rate leaves out the first steps (`outcome.WARM`), which favours
whoever compiles. Before any time is taken, all adapter gradients are compared with those of PEFT's own layers; after
it, the labelled tokens of every side and its loss on held-out rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from benchmarks.common import proofs
from benchmarks.common.bases import MINI, adapted, alpaca, tokenizer_of
from benchmarks.common.timing import interleaved, ratio
from benchmarks.peers import ours, sft, trainer
from benchmarks.peers.outcome import Outcome, Schedule
from loratlas.data.batches.batching import training_order
from loratlas.evaluation.score import score

TARGETS = {"Trainer as shipped": 8.0, "Trainer at its best": 2.0, "SFTTrainer with packing": 1.5}
"""Peer → what our labelled tokens per second over its should reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What one run of one side left."""

    outcome: Outcome
    nll: float


def measure(*, steps: int, rounds: int, compiled: bool) -> dict[str, Any]:
    """The cases and rows of the table; ``faults`` names what was computed differently.

    Args:
        steps: of 16 rows, per run.
        rounds: of all sides in turns.
        compiled: whether peers' candidates with ``torch_compile`` are tried, and our own compiled run is made.
    """
    schedule = Schedule()
    data = alpaca(MINI, rows=steps * schedule.batch)
    steps = len(data) // schedule.batch
    held_out = alpaca(MINI, rows=200, split="eval")
    order = training_order(len(data), steps=steps, batch_size=schedule.batch, seed=0).reshape(-1).tolist()
    difference = proofs.gradients(MINI, data)
    faults = proofs.faults(difference, "Alpaca")

    def side(dtype: str, run: Callable[[Any], Outcome]) -> Callable[[], Side]:
        def once() -> Side:
            model = adapted(MINI, dtype)
            outcome = run(model)
            return Side(outcome=outcome, nll=score(model, held_out, packed=True).token_mean_nll)

        return once

    def with_trainer(recipe: trainer.Recipe) -> Callable[[], Side]:
        return side(recipe.dtype, lambda model: trainer.train(model, data, order, schedule, recipe))

    tokenizer = tokenizer_of(MINI)

    def with_trl(packing: sft.Packing) -> Callable[[], Side]:
        return side(packing.dtype, lambda model: sft.train(model, tokenizer, data, order, schedule, packing))

    def mine(*, through_compiler: bool) -> Callable[[], Side]:
        def train(model: Any) -> Outcome:
            return ours.train(model, data, schedule, dtype="bfloat16", steps=steps, compiled=through_compiler)

        return side("bfloat16", train)

    tried: dict[str, dict[str, Any]] = {}

    def best(candidates: Sequence[Any], of: Callable[[Any], Callable[[], Side]]) -> Any:
        listed = []
        for candidate in _wanted(candidates, compiled):
            outcome = of(candidate)().outcome
            tried[candidate.name] = outcome.facts()
            listed.append((outcome.steady, candidate))
        return max(listed, key=lambda pair: pair[0])[1]

    peers = {"Trainer at its best": best(trainer.BEST, with_trainer)}
    packing = best(sft.BEST, with_trl)
    own = {"loratlas": mine(through_compiler=False)}
    if compiled:
        own["loratlas, compiled"] = mine(through_compiler=True)
    sides = {
        **own,
        "Trainer as shipped": with_trainer(trainer.SHIPPED),
        "Trainer at its best": with_trainer(peers["Trainer at its best"]),
        "SFTTrainer with packing": with_trl(packing),
    }
    runs = interleaved(sides, rounds=rounds)
    table = []
    for name, (other, target) in product(own, TARGETS.items()):
        faults += _unlike(name, runs[name], other, runs[other])
        table.append(_row(name, runs[name], other, runs[other], target))
    return {
        "base": MINI,
        "placement": "all:8",
        "steps": steps,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "gradient_difference": difference,
        "recipe": peers["Trainer at its best"],
        "chosen": {"Trainer": peers["Trainer at its best"].name, "SFTTrainer": packing.name},
        "tried": tried,
        "runs": {
            name: [{**s.outcome.facts(), "nll": round(s.nll, 4)} for s in listed]
            for name, listed in runs.items()
        },
        "table": table,
        "faults": sorted(set(faults)),
    }


def _row(name: str, own: Sequence[Side], other: str, theirs: Sequence[Side], target: float) -> dict[str, Any]:
    def beside(rate: Callable[[Outcome], float]) -> dict[str, Any]:
        return ratio([rate(s.outcome) for s in own], [rate(s.outcome) for s in theirs])

    return {
        "row": f"{name} against {other}",
        "target": target,
        "steady": beside(lambda outcome: outcome.steady),
        "whole": beside(lambda outcome: outcome.rate),
        "whole_cpu": beside(lambda outcome: outcome.cpu_rate),
    }


def _unlike(name: str, own: Sequence[Side], other: str, theirs: Sequence[Side]) -> list[str]:
    """What two sides did not do alike: tokens that the loss counts, and where they end."""
    listed = []
    for mine, their in zip(own, theirs, strict=True):
        if sum(mine.outcome.labelled) != sum(their.outcome.labelled):
            listed.append(
                f"{other} trained {sum(their.outcome.labelled)} labelled tokens, "
                f"{name} {sum(mine.outcome.labelled)}"
            )
        if abs(mine.nll - their.nll) > proofs.LOSSES:
            listed.append(f"{other} ends at {their.nll:.4f} nats, {name} at {mine.nll:.4f}")
    return listed


def _wanted(candidates: Sequence[Any], compiled: bool) -> Iterator[Any]:
    yield from (candidate for candidate in candidates if compiled or not candidate.compiled)
