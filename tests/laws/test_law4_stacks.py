"""Law 4 for stacks of experts: the low-rank part on the tokens that a run sent to an expert is PEFT's whole delta."""

from __future__ import annotations

import pytest
import torch
from tests.adapters.architectures import model
from tests.training.fleets import alone, equals_its_runs_alone, losses
from tests.training.small import encoded

from loratlas.anatomy.read import read
from loratlas.placement.plan import place
from loratlas.training.fleet.train_fleet import Fleet, Member, why_not_in_fleet
from loratlas.training.settings import Settings

TEXTS = ("all:4", "moe:2", "moe.down:2 + o:3")


def member(base, text, *, lr=4e-3, seed=0, **more):
    options = {"steps": 6, "batch_size": 3, "dtype": "float32", **more}
    return Member(rows=place(read(base.config), text).rows, settings=Settings(lr=lr, seed=seed, **options))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("model_type", "packed"), [("mixtral", True), ("gpt_oss", False), ("deepseek_v3", False)]
)
def test_a_fleet_with_experts_equals_its_runs_alone(model_type, packed):
    """Stored either way round, with biases and interleaved gates (gpt_oss), beside shared experts (deepseek_v3)."""
    base, data = model(model_type), encoded(16, longest=24)
    members = [
        member(
            base,
            text,
            lr=1e-3 * 2**number,
            seed=number // 2,
            batch_size=3 + number % 2,
            loraplus=4.0 if number == 1 else None,
            clip=None if number == 2 else 0.5,
        )
        for number, text in enumerate(TEXTS)
    ]
    fleet = equals_its_runs_alone(base, data, members, packed=packed)
    moved = [value for name, value in fleet.runs[1].masters.named() if ".lora_B." in name]
    assert all(value.any() for value in moved)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_that_diverges_in_its_experts_leaves_the_others_alone():
    base, data = model("mixtral"), encoded(16, longest=24)
    good = [member(base, "moe:2"), member(base, "all:3", seed=1)]
    wild = member(base, "moe:2", lr=1e30, clip=None)
    first, diverged, second = Fleet(base, data, [good[0], wild, good[1]]).fit()
    assert diverged.diverged
    for one, mine in zip((first, second), good, strict=True):
        torch.testing.assert_close(losses(one), losses(alone(base, data, mine)[0]), rtol=1e-5, atol=0)


def test_experts_of_another_form_train_alone():
    from tests.adapters.test_stacks import config, live

    given = config("jetmoe", num_hidden_layers=2)
    base = live(given)
    words = why_not_in_fleet(base, member(base, "moe:2"))
    assert words is not None
    assert "JetMoeParallelExperts" in words
    shared = model("deepseek_v3")
    assert why_not_in_fleet(shared, member(shared, "all:2")) is None
    assert "adapted as a parameter" in str(why_not_in_fleet(shared, member(shared, "all:2", dropout=0.1)))
    assert why_not_in_fleet(shared, member(shared, "attention + moe:2", dropout=0.1)) is None
    shared.model.layers[0].self_attn.attention_dropout = 0.1
    assert "the base has dropout" in str(why_not_in_fleet(shared, member(shared, "all:2")))
