"""Adapters that move where not all can: stacks of experts keep their ranks, and what PEFT refuses is left out."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import loratlas
from loratlas.adapters.resize import ranks_of
from loratlas.api.listener import Silent
from loratlas.demo import base_path
from loratlas.errors import BudgetError
from loratlas.modeling import zero_dropout

pytestmark = pytest.mark.filterwarnings("ignore:.*forward pass:UserWarning")
ROWS = [{"prompt": f"{n} and {n} make", "completion": f"{2 * n}"} for n in range(40)]
STEPS, HEAD = 12, 4
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(base_path())


@pytest.fixture
def mixtral(tokenizer):
    config = AutoConfig.for_model("mixtral", vocab_size=len(tokenizer), **SMALL)
    zero_dropout(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).requires_grad_(False)


def train(model, tokenizer, **more):
    return loratlas.train(
        model,
        ROWS,
        tokenizer=tokenizer,
        placement="auto",
        steps=STEPS,
        head=HEAD,
        batch_size=4,
        lr=0.01,
        max_length=32,
        settings=loratlas.Settings(dtype="float32", compile="off"),
        **more,
    )


def test_stacks_of_experts_keep_their_ranks_and_others_move(mixtral, tokenizer, tmp_path):
    listener, bare = Silent(), copy.deepcopy(mixtral)
    run = train(
        mixtral, tokenizer, signal="random", budget="like=all:2", out=tmp_path / "run", listener=listener
    )
    stacks = [row for row in run.plan.rows if row.site.kind == "experts"]
    others = {row.site.module: row.rank for row in run.plan.rows if row.site.kind != "experts"}
    assert len(stacks) == 4
    assert any("keep their ranks: stacks of experts" in note for note in listener.notes)
    assert run.moves
    assert not any("expert" in move["path"] for move in run.moves)
    last = ranks_of(run.model)
    assert {module: last[module] for module in others} == others
    assert len(set(others.values())) > 1
    assert {row.rank for row in stacks} == {2}
    assert run.trainable == run.plan.trainable

    reloaded = PeftModel.from_pretrained(bare, run.adapter)
    factors = {name: value for name, value in run.model.named_parameters() if "lora_" in name}
    read = {name: value for name, value in reloaded.named_parameters() if "lora_" in name}
    assert any("experts" in name for name in read)
    assert read.keys() == factors.keys()
    assert all(torch.equal(value, factors[name]) for name, value in read.items())
    tokens = torch.arange(3, 30)[None]
    with torch.no_grad():
        wanted = run.model.eval()(input_ids=tokens).logits
        assert torch.allclose(reloaded.eval()(input_ids=tokens).logits, wanted, atol=1e-6)


def test_a_budget_that_stacks_use_up_is_refused_before_the_first_step(mixtral, tokenizer):
    before = {name: value.clone() for name, value in mixtral.named_parameters()}
    with pytest.raises(BudgetError, match="stacks of experts, which keep their ranks") as refused:
        train(mixtral, tokenizer, budget="params=1500")
    train(mixtral, tokenizer, budget=refused.value.instead.removeprefix("at least "))
    assert all(
        torch.equal(value, before[name]) for name, value in mixtral.named_parameters() if name in before
    )


@pytest.fixture
def mamba(tokenizer):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 6}
    config = AutoConfig.for_model("mamba", vocab_size=len(tokenizer), **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).requires_grad_(False)


def test_what_peft_refuses_in_a_mamba_is_left_out(mamba, tokenizer):
    run = train(mamba, tokenizer, budget="params=3000", signal="random")
    assert run.moves
    assert run.plan.trainable <= 3000
    assert {row.site.role for row in run.plan.rows} == {"mixer.in"}
