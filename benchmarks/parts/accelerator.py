"""What only an accelerator can show: a step over the floor at two sizes, the share of its peak, a fleet of nine.

The base has DialoGPT-medium's shape and random weights, in bfloat16. Rows are made up and all of one length, so that no
side pads. Operations are counted as 4·N per token, N the parameters of the base without its embeddings but with its
output embedding: forward, and the gradient of the activations; adapters and attention are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.common import proofs
from benchmarks.common.bases import MEDIUM, adapted, base, made_up
from benchmarks.common.timing import Sample, block, interleaved, ratio, ratios, seconds, timed
from benchmarks.peers import ours, trainer
from benchmarks.peers.floor import Floor, PeftStep
from benchmarks.peers.outcome import Schedule
from loratlas.data.batches.batching import training_order
from loratlas.data.examples import Encoded
from loratlas.placement.plan import place
from loratlas.training.fleet.train_fleet import Fleet, Member
from loratlas.training.loop import fit
from loratlas.training.step.microbatches import microbatches

PLACEMENT = "all:8"
BATCHES = ((4, 256), (16, 512))
FLEET = 9
SKIP = 3

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
"""Dense bfloat16 operations per second by part of the card's name, from its maker's data sheets (SXM where a card has
several forms)."""


def measure(
    *,
    device: str,
    rounds: int,
    name: str = MEDIUM,
    batches: Sequence[tuple[int, int]] = BATCHES,
    runs: int = FLEET,
    steps: int = 20,
    compiled: Sequence[bool] = (False, True),
) -> dict[str, Any]:
    """All cases and the fleet.

    Args:
        device: where everything lies.
        rounds: of all sides in turns, after one that warms up.
        name: of the base.
        batches: (rows, tokens of each).
        runs: of the fleet, at the first batch.
        steps: per side and round.
        compiled: with which kinds of code cases are measured.
    """
    data = made_up(name, rows=2, length=batches[0][1])
    difference = proofs.gradients(name, data, placement=PLACEMENT, rows=2)
    cases = [
        _case(name, rows, length, device=device, rounds=rounds, steps=steps, compiled=code)
        for rows, length in batches
        for code in compiled
    ]
    rows, length = batches[0]
    fleet = _fleet(name, rows, length, runs=runs, device=device, rounds=rounds, steps=steps)
    return {
        "card": torch.cuda.get_device_name() if device == "cuda" else device,
        "base": name,
        "placement": PLACEMENT,
        "gradient_difference": difference,
        "cases": cases,
        "fleet": fleet,
        "faults": proofs.faults(difference, name) + fleet.pop("faults"),
    }


def _case(
    name: str, rows: int, length: int, *, device: str, rounds: int, steps: int, compiled: bool
) -> dict[str, Any]:
    data = made_up(name, rows=rows, length=length)
    (batch,) = microbatches(data, range(rows), packed=True)
    batch = batch.to(torch.device(device))
    frozen = base(name, "bfloat16").to(device)
    floor = Floor(frozen, batch, place(frozen, PLACEMENT), compiled=compiled)
    one, other = (adapted(name, "bfloat16", placement=PLACEMENT).to(device) for _ in ("peft", "ours"))
    peft = PeftStep(one, batch, compiled=compiled)
    schedule = Schedule(batch=rows)

    def ours_once() -> Sample:
        return ours.step_time(
            other, data, schedule, dtype="bfloat16", skip=SKIP, steps=steps, compiled=compiled
        )

    result = interleaved(
        {
            "floor": lambda: block(floor.step, steps=steps),
            "peft": lambda: block(peft.step, steps=steps),
            "ours": ours_once,
        },
        rounds=rounds + 1,
    )
    kept = {side: samples[1:] for side, samples in result.items()}
    per_second = batch.tokens / Sample.middle(kept["ours"]).wall
    peak = next((peak for part, peak in PEAKS.items() if part in _card(device)), None)
    return {
        "rows": rows,
        "length": length,
        "compiled": compiled,
        "ours_over_floor": ratios(kept["ours"], kept["floor"]),
        "peft_over_floor": ratios(kept["peft"], kept["floor"]),
        "tokens_per_second": round(per_second, 1),
        "share_of_peak": None if peak is None else round(4 * _counted(frozen) * per_second / peak, 4),
        "seconds": {side: seconds(samples) for side, samples in kept.items()},
    }


def _card(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else ""


def _counted(model: Any) -> int:
    """N: parameters that every token is multiplied with."""
    embeddings = {id(p) for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    head = model.get_output_embeddings().weight
    return head.numel() + sum(p.numel() for p in model.parameters() if id(p) not in embeddings | {id(head)})


def _fleet(
    name: str, rows: int, length: int, *, runs: int, device: str, rounds: int, steps: int
) -> dict[str, Any]:
    """The same runs in a fleet, alone, by `Trainer`; and one run whose batch is theirs end to end.

    That packing is exact is proven once for a base, and not timed here.
    """
    data = made_up(name, rows=rows * steps, length=length)
    many = made_up(name, rows=rows * runs * steps, length=length)
    schedules = [Schedule(lr=1e-4 * (1 + run % 3), batch=rows, seed=run // 3) for run in range(runs)]
    losses: dict[str, list[float]] = {}

    def fleet() -> Sample:
        model = base(name, "bfloat16").to(device)
        chosen = place(model.config, PLACEMENT).rows
        members = [Member(rows=chosen, settings=_settings(one, steps)) for one in schedules]
        time, results = timed(Fleet(model, data, members).fit)
        losses["fleet"] = [result.train_nll for result in results]
        return time

    def alone() -> Sample:
        return _total([_alone(name, data, one, steps, device, losses) for one in schedules])

    def one_run() -> Sample:
        model = adapted(name, "bfloat16", placement=PLACEMENT).to(device)
        return timed(lambda: fit(model, many, _settings(Schedule(batch=rows * runs), steps), packed=True))[0]

    def with_trainer(recipe: trainer.Recipe) -> Callable[[], Sample]:
        def once() -> Sample:
            return _total([_by_trainer(name, data, one, steps, device, recipe) for one in schedules])

        return once

    tried = {
        recipe: _by_trainer(name, data, schedules[0], steps, device, recipe).wall for recipe in trainer.BEST
    }
    best = min(tried, key=lambda recipe: tried[recipe])
    outcome = interleaved(
        {"fleet": fleet, "alone": alone, "one run": one_run, "trainer": with_trainer(best)}, rounds=rounds
    )
    wall = {side: [sample.wall for sample in samples] for side, samples in outcome.items()}
    pairs = zip(losses["fleet"], losses["alone"][-runs:], strict=True)
    apart = max(abs(one - other) for one, other in pairs)
    return {
        "runs": runs,
        "rows": rows,
        "length": length,
        "steps": steps,
        "recipe": best.name,
        "tried": {recipe.name: round(time, 3) for recipe, time in tried.items()},
        # The same tokens in all: times are the inverse of rates.
        "over_one_run": ratio(wall["one run"], wall["fleet"]),
        "over_alone": ratio(wall["alone"], wall["fleet"]),
        "over_trainer": ratio(wall["trainer"], wall["fleet"]),
        "seconds": {side: seconds(samples) for side, samples in outcome.items()},
        "loss_difference": apart,
        "faults": [f"fleet and runs alone end {apart:.4f} nats apart"] if apart > proofs.LOSSES else [],
    }


def _settings(schedule: Schedule, steps: int) -> Any:
    return ours.settings(schedule, dtype="bfloat16", steps=steps)


def _alone(
    name: str, data: Encoded, schedule: Schedule, steps: int, device: str, losses: dict[str, list[float]]
) -> Sample:
    model = adapted(name, "bfloat16", placement=PLACEMENT, seed=schedule.seed).to(device)
    time, result = timed(lambda: fit(model, data, _settings(schedule, steps), packed=True))
    losses.setdefault("alone", []).append(result.train_nll)
    return time


def _by_trainer(
    name: str, data: Encoded, schedule: Schedule, steps: int, device: str, recipe: trainer.Recipe
) -> Sample:
    model = adapted(name, recipe.dtype, placement=PLACEMENT, seed=schedule.seed).to(device)
    order = training_order(len(data), steps=steps, batch_size=schedule.batch, seed=schedule.seed)
    return trainer.train(model, data, order.reshape(-1).tolist(), schedule, recipe).whole


def _total(samples: Sequence[Sample]) -> Sample:
    return Sample(wall=sum(s.wall for s in samples), cpu=sum(s.cpu for s in samples))
