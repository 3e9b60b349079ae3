"""Trainers, models and wishes with which adapters cannot move: each a sentence before the first step."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.integrations.small_trainer import placed, trainer
from tests.tiny import tiny_model
from tests.training.small import SITES, adapted, weights

import loratlas
from loratlas.errors import AttachError, BudgetError, LoratlasError, SettingsError

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class Factored(torch.optim.Adafactor):
    pass


def merged():
    model = adapted()
    model.merge_adapter()
    return model


def two_adapters():
    model = adapted()
    model.add_adapter("other", LoraConfig(r=2, target_modules=SITES["llama"]))
    return model


WISHES = [
    ({"policy": "magic"}, "no such policy"),
    ({"policy": "attention"}, "watched in loratlas.train alone"),
    ({"head": "much"}, "neither a share nor a count"),
    ({"head": 2}, "too few"),
    ({"head": 12}, "a run of 12"),
    ({"head": "400%"}, "leaves nothing of the run"),
    ({"decide": "often"}, "not understood"),
    ({"budget": 10}, "ranks from 1 at one site"),
    ({"budget": "params=1B"}, "ranks from 1 at one site"),
    ({"budget": "time=1.1"}, "a budget of time"),
    ({"budget": "much"}, "no quantity"),
    ({"budget": 2500.5}, "no whole number of parameters"),
    ({"placement": "attn.nothing"}, "attn.nothing"),
]


@pytest.mark.parametrize(("wish", "said"), WISHES, ids=[str(wish) for wish, _ in WISHES])
def test_wishes(tmp_path, wish, said):
    own = trainer(tmp_path)
    before = weights(own.model)
    with pytest.raises(LoratlasError, match=said) as caught:
        placed(own, **wish)
    assert not any("--" in text for text in (caught.value.given, caught.value.found, caught.value.instead))
    assert all(torch.equal(value, before[name]) for name, value in weights(own.model).items())


MODELS = [
    (lambda: tiny_model("llama"), AttachError, "no PeftModel"),
    (merged, AttachError, "merged into the base"),
    (lambda: adapted(use_dora=True), AttachError, "more than two factors"),
    (two_adapters, AttachError, "the adapters"),
    (lambda: adapted(init="olora"), AttachError, "moved a part of the base"),
]


@pytest.mark.parametrize(("make", "kind", "said"), MODELS, ids=["bare", "merged", "dora", "two", "olora"])
def test_models(tmp_path, make, kind, said):
    with pytest.raises(kind, match=said) as caught:
        placed(trainer(tmp_path, model=make()))
    assert caught.value.given == "DynamicPlacement(…).install(trainer)"


def test_words_are_those_of_the_trainer(tmp_path):
    with pytest.raises(SettingsError) as caught:
        loratlas.DynamicPlacement(head="much")
    assert (caught.value.given, caught.value.instead) == ("head='much'", 'head="10%"')
    with pytest.raises(SettingsError) as caught:
        loratlas.DynamicPlacement(decide="every=0")
    assert caught.value.given == "decide='every=0'"
    own = trainer(tmp_path, max_steps=4)
    with pytest.raises(SettingsError) as caught:
        loratlas.DynamicPlacement().install(own)
    assert "max_steps=40 or more" in caught.value.instead
    own = trainer(tmp_path, max_steps=-1, num_train_epochs=1)  # 16 steps, which only the trainer knows
    placed(own, head=16)
    with pytest.raises(SettingsError) as caught:
        own.train()
    assert caught.value.instead == "head=4"


def test_a_model_in_which_nothing_trains(tmp_path):
    model = adapted()
    own = trainer(tmp_path, model=model)
    model.requires_grad_(False)
    with pytest.raises(SettingsError, match="nothing is trained"):
        placed(own)


WAYS = [
    ({"optim": "adafactor"}, "cannot be carried over"),
    ({"optim": "adamw_bnb_8bit"}, "cannot be carried over"),
    ({"optim": "sgd"}, "cannot be carried over"),
    ({"torch_compile": True}, "holds on to parameters"),
    ({"auto_find_batch_size": True}, "begins a run over"),
]


@pytest.mark.parametrize(("way", "said"), WAYS, ids=[str(way) for way, _ in WAYS])
def test_ways_of_training(tmp_path, way, said):
    with pytest.raises(SettingsError, match=said):
        placed(trainer(tmp_path, **way))


@pytest.mark.parametrize("amsgrad", [False, True])
def test_an_optimizer_that_was_handed_over_is_looked_at_before_the_first_step(tmp_path, amsgrad):
    model = adapted()
    optimizer = (
        torch.optim.AdamW(model.parameters(), amsgrad=True) if amsgrad else Factored(model.parameters())
    )
    own = trainer(tmp_path, model=model, optimizers=(optimizer, None))
    before = weights(model)
    placed(own)
    with pytest.raises(SettingsError, match="amsgrad" if amsgrad else "Factored"):
        own.train()
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_a_plain_optimizer_that_was_handed_over_follows(tmp_path):
    model = adapted()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    own = trainer(tmp_path, model=model, optimizers=(optimizer, None))
    placement = placed(own)
    own.train()
    assert placement.moves
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in model.parameters() if p.requires_grad} <= held


def test_sharded_training(tmp_path):
    own = trainer(tmp_path)
    own.is_fsdp_enabled = True
    with pytest.raises(SettingsError, match="FSDP, which shards"):
        placed(own)
    own.is_fsdp_enabled, own.is_deepspeed_enabled = False, True
    with pytest.raises(SettingsError, match="DeepSpeed, which shards"):
        placed(own)


def test_something_else_than_a_trainer():
    with pytest.raises(SettingsError, match="a str"):
        loratlas.DynamicPlacement().install("trainer")


@pytest.mark.parametrize("budget", [3000, 3000.0, "params=3000", "like=q,v:4"])
def test_a_smaller_budget_is_reached(tmp_path, budget):
    own = trainer(tmp_path)
    placement = placed(own, policy="energy", budget=budget)
    own.train()
    used = sum(p.numel() for p in weights(own.model).values())
    assert used <= (3000 if "like" not in str(budget) else loratlas.place(own.model, "q,v:4").trainable)
    assert placement.decisions[-1].parameters == used


def test_a_smaller_budget_is_reached_where_nothing_else_moves(tmp_path):
    own = trainer(tmp_path)
    placement = placed(own, policy="none", budget=3000)
    own.train()
    used = sum(p.numel() for p in weights(own.model).values())
    assert placement.decisions[0].parameters == used <= 3000
    assert {move.reason for move in placement.moves} == {"the budget"}


def test_every_refusal_of_a_budget_says_one_that_works(tmp_path):
    for budget in (10, "params=1B"):
        with pytest.raises(BudgetError) as caught:
            placed(trainer(tmp_path), budget=budget)
        placed(trainer(tmp_path), budget=caught.value.instead.split('"')[1])


def test_a_head_is_a_layer_more(tmp_path):
    """What trains besides adapters is neither moved nor counted."""
    model = tiny_model("llama")
    config = LoraConfig(r=2, target_modules=SITES["llama"], modules_to_save=["lm_head"])
    own = trainer(tmp_path, model=get_peft_model(model, config))
    placement = placed(own)
    own.train()
    assert placement.moves
    head = sum(p.numel() for name, p in weights(own.model).items() if "lm_head" in name)
    assert placement.decisions[-1].parameters == sum(p.numel() for p in weights(own.model).values()) - head
