"""End to end on Alpaca: labelled tokens trained per second, over identical rows, beside Trainer and SFTTrainer.

Every side trains a fresh adapter from the same numbers on the same rows for the same steps. Of a peer's candidates for
its best one run each decides which takes part. A rate leaves out the first steps (`outcome.WARM`), which favours
whoever compiles. Before any time is taken, all adapter gradients are compared with those of PEFT's own layers; after
it, the labelled tokens of every side and its loss on held-out rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.common.bases import MINI, adapted, alpaca, tokenizer_of
from benchmarks.common.timing import interleaved, ratio
from benchmarks.peers import ours, sft, trainer
from benchmarks.peers.outcome import Outcome, Schedule
from loratlas.adapters.kernels import lean
from loratlas.data.batches import training_order
from loratlas.data.encode import Encoded
from loratlas.evaluation.tokens import score
from loratlas.training.microbatches import microbatches
from loratlas.training.step import step_loss

GRADIENTS = 1e-4
"""Largest ‖ours − PEFT's‖ / ‖PEFT's‖ over all adapter gradients in float32 that rounding explains."""

LOSSES = 0.05
"""Largest difference of held-out losses, nats per token, that another order of rows and bfloat16 explain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What one run of one side left."""

    outcome: Outcome
    nll: float


def gradients(data: Encoded, rows: int = 8) -> float:
    """‖ours − PEFT's‖ / ‖PEFT's‖ of all adapter gradients of one step, B drawn at random so that A has one as well."""
    model = adapted(MINI, "float32")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    chosen = data.examples[:rows]

    def taken() -> torch.Tensor:
        found = [p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]
        model.zero_grad(set_to_none=True)
        return torch.cat(found)

    model.train()
    model(**trainer.batch_of([trainer.row_of(e) for e in chosen], data.pad_id)).loss.backward()
    theirs = taken()
    with lean(model):
        batches = list(microbatches(data, range(rows), packed=True))
        labelled = sum(batch.labelled for batch in batches)
        for batch in batches:
            (step_loss(model, batch) / labelled).backward()
    return float((taken() - theirs).norm() / theirs.norm())


def measure(*, steps: int, rounds: int, compiled: bool) -> dict[str, Any]:
    """The cases and rows of the table; ``faults`` names what was computed differently.

    Args:
        steps: of 16 rows, per run.
        rounds: of all sides in turns.
        compiled: whether peers' candidates with ``torch_compile`` are tried.
    """
    schedule = Schedule()
    data = alpaca(MINI, rows=steps * schedule.batch)
    steps = len(data) // schedule.batch
    held_out = alpaca(MINI, rows=200, split="eval")
    order = training_order(len(data), steps=steps, batch_size=schedule.batch, seed=0).reshape(-1).tolist()
    difference = gradients(data)
    faults = [] if difference <= GRADIENTS else [f"gradients differ by {difference:.1e}"]

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

    def mine(dtype: str) -> Callable[[], Side]:
        return side(dtype, lambda model: ours.train(model, data, schedule, dtype=dtype, steps=steps))

    tried: dict[str, dict[str, Any]] = {}

    def best(candidates: Sequence[Any], of: Callable[[Any], Callable[[], Side]]) -> Any:
        found = []
        for candidate in _wanted(candidates, compiled):
            outcome = of(candidate)().outcome
            tried[candidate.name] = outcome.facts()
            found.append((outcome.steady, candidate))
        return max(found, key=lambda pair: pair[0])[1]

    peers = {"Trainer at its best": best(trainer.BEST, with_trainer)}
    packing = best(sft.BEST, with_trl)
    sides = {
        "loratlas": mine("bfloat16"),
        "Trainer as shipped": with_trainer(trainer.SHIPPED),
        "Trainer at its best": with_trainer(peers["Trainer at its best"]),
        "SFTTrainer with packing": with_trl(packing),
    }
    runs = interleaved(sides, rounds=rounds)
    own = runs["loratlas"]
    table = []
    for name, target in (
        ("Trainer as shipped", 8.0),
        ("Trainer at its best", 2.0),
        ("SFTTrainer with packing", 1.5),
    ):
        other = runs[name]
        for mine_, theirs in zip(own, other, strict=True):
            if sum(mine_.outcome.labelled) != sum(theirs.outcome.labelled):
                faults.append(
                    f"{name} trained {sum(theirs.outcome.labelled)} labelled tokens, "
                    f"not {sum(mine_.outcome.labelled)}"
                )
            if abs(mine_.nll - theirs.nll) > LOSSES:
                faults.append(f"{name} ends at {theirs.nll:.4f} nats, not {mine_.nll:.4f}")
        table.append(
            {
                "row": f"labelled tokens per second against {name}",
                "target": target,
                "steady": ratio([s.outcome.steady for s in own], [s.outcome.steady for s in other]),
                "whole": ratio([s.outcome.rate for s in own], [s.outcome.rate for s in other]),
                "whole_cpu": ratio([s.outcome.cpu_rate for s in own], [s.outcome.cpu_rate for s in other]),
            }
        )
    return {
        "base": MINI,
        "placement": "all:8",
        "steps": steps,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "gradient_difference": difference,
        "chosen": {"Trainer": peers["Trainer at its best"].name, "SFTTrainer": packing.name},
        "tried": tried,
        "runs": {
            name: [{**s.outcome.facts(), "nll": round(s.nll, 4)} for s in found]
            for name, found in runs.items()
        },
        "table": table,
        "faults": sorted(set(faults)),
    }


def _wanted(candidates: Sequence[Any], compiled: bool) -> Iterator[Any]:
    yield from (candidate for candidate in candidates if compiled or not candidate.compiled)
