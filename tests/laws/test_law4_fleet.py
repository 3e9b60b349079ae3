"""Law 4: a fleet of runs equals the runs alone, and the same fleet repeats bit for bit."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import tiny_model
from tests.training.fleets import alone, equals_its_runs_alone, losses
from tests.training.small import encoded

from loratlas.placement.plan import place
from loratlas.training.fleet.train_fleet import Fleet, Member
from loratlas.training.settings import Settings

TEXTS = {
    "llama": ("all:4", "attention:2", "feedforward@1..3:8", "q,v,down:3", "all@top/3:1", "attention:5"),
    "gpt2": ("all:4", "attention:2", "feedforward@1..3:8", "ffn.up:3", "all@top/3:1", "attention:5"),
    "phi": ("all:4", "attention:2", "feedforward@1..3:8", "q,ffn.up:3", "all@top/3:1", "attention:5"),
}


def members(base, *, steps, kind, dropout=0.0, **more):
    listed = []
    for number, text in enumerate(TEXTS[kind]):
        settings = Settings(
            steps=steps,
            lr=1e-3 * 2 ** (number % 4),
            seed=number // 2,
            batch_size=3 + number % 2,
            dtype=str(base.dtype).removeprefix("torch."),
            dropout=dropout if number % 2 else 0.0,
            loraplus=4.0 if number == 3 else None,
            clip=None if number == 2 else 0.5,
            **more,
        )
        listed.append(Member(rows=place(base, text).rows, settings=settings))
    return listed


@pytest.mark.parametrize(
    ("kind", "steps", "dropout"), [("llama", 200, 0.0), ("gpt2", 40, 0.1), ("phi", 40, 0.1)]
)
def test_a_fleet_equals_its_runs_alone(kind, steps, dropout):
    base, data = tiny_model(kind), encoded(24)
    runs = members(base, steps=steps, kind=kind, dropout=dropout)
    equals_its_runs_alone(base, data, runs, packed=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_fleet_repeats_bit_for_bit(dtype):
    base, data = tiny_model("llama").to(dtype), encoded(24)
    listed = []
    for _ in range(2):
        fleet = Fleet(base, data, members(base, steps=8, kind="llama", dropout=0.1, micro_batch=2))
        results = fleet.fit()
        listed.append(
            [(losses(result), run.masters.copy()) for result, run in zip(results, fleet.runs, strict=True)]
        )
    for (one, first), (other, second) in zip(*listed, strict=True):
        assert torch.equal(one, other)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_micro_batches_and_recomputation_change_nothing():
    base, data = tiny_model("llama"), encoded(24)
    for options in ({"micro_batch": 1}, {"checkpointing": True}):
        fleet = Fleet(base, data, members(base, steps=6, kind="llama", **options))
        for member, result in zip(fleet.members, fleet.fit(), strict=True):
            torch.testing.assert_close(
                losses(result), losses(alone(base, data, member)[0]), rtol=1e-5, atol=0
            )
