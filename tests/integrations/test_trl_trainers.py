"""A plan and `faster` inside TRL's trainers: exactly the plan's sites train, in two steps on the embedded base."""

from __future__ import annotations

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import loratlas
from loratlas.demo import base_path
from loratlas.errors import SettingsError

BASE = str(base_path("demo:llama-mini"))
PLACEMENT = "q,v:2 + ffn.down@top/2:1"
PAIRS = [
    {"prompt": f"{i} plus {i} is", "chosen": f" {2 * i}", "rejected": f" {3 * i + 1}"} for i in range(2, 10)
]
COMMON = {
    "max_steps": 2, "learning_rate": 1e-2, "report_to": "none", "save_strategy": "no", "use_cpu": True,
    "bf16": False, "logging_steps": 1, "disable_tqdm": True, "per_device_train_batch_size": 2,
    "gradient_checkpointing": False, "seed": 1,
}  # fmt: skip

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def tokenizer():
    loaded = AutoTokenizer.from_pretrained(BASE)
    loaded.pad_token = loaded.pad_token or loaded.eos_token
    return loaded


def adapted(kind=AutoModelForCausalLM, **options):
    """The base with a plan's adapters in their faster layers, and the plan."""
    base = kind.from_pretrained(BASE, dtype=torch.float32, **options)
    plan = loratlas.place(base, PLACEMENT)
    model = plan.attach(base, seed=1)
    loratlas.faster(model)
    lean = [m for m in model.modules() if type(m).__module__ == "loratlas.adapters.layers.lean_lora"]
    assert len(lean) == len(plan.rows)
    return plan, model


def after(trainer, plan, model, *, head: int = 0):
    """Train, and see that the plan's factors moved and nothing else did."""
    names = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert sum(names[name].numel() for name in trained) == plan.trainable + head
    trainer.train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p.detach(), names[name])}
    assert moved <= trained
    assert {name for name in trained if "lora_B" in name} <= moved
    sites = {
        name.split(".lora_B.")[0].removeprefix("base_model.model.") for name in moved if "lora_B" in name
    }
    assert sites == {row.site.module for row in plan.rows}
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_supervised(tmp_path, tokenizer):
    from trl import SFTConfig, SFTTrainer

    plan, model = adapted()
    rows = Dataset.from_list([{"prompt": p["prompt"], "completion": p["chosen"]} for p in PAIRS])
    trainer = SFTTrainer(
        model=model, args=SFTConfig(output_dir=str(tmp_path), max_length=32, **COMMON), train_dataset=rows,
        processing_class=tokenizer,
    )  # fmt: skip
    assert all(math.isfinite(entry["loss"]) for entry in after(trainer, plan, model))


def test_preferences(tmp_path, tokenizer):
    from trl import DPOConfig, DPOTrainer

    plan, model = adapted()
    trainer = DPOTrainer(
        model=model, args=DPOConfig(output_dir=str(tmp_path), max_length=32, **COMMON),
        train_dataset=Dataset.from_list(PAIRS), processing_class=tokenizer,
    )  # fmt: skip
    losses = after(trainer, plan, model)
    # Before the first step policy and reference are the same model: −ln σ(0).
    assert losses[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[1]["loss"] != pytest.approx(math.log(2), abs=1e-4)


def test_groups_of_answers(tmp_path, tokenizer):
    from trl import GRPOConfig, GRPOTrainer

    def reward(completions, **_):
        return [float(sum(map(ord, text)) % 7) for text in completions]

    plan, model = adapted()
    arguments = GRPOConfig(
        output_dir=str(tmp_path), num_generations=2, max_completion_length=6, temperature=1.0, **COMMON
    )
    trainer = GRPOTrainer(
        model=model, args=arguments, reward_funcs=reward, processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": p["prompt"]} for p in PAIRS]),
    )  # fmt: skip
    assert len(after(trainer, plan, model)) == 2


def test_rewards(tmp_path, tokenizer):
    from trl import RewardConfig, RewardTrainer

    plan, model = adapted(
        AutoModelForSequenceClassification, num_labels=1, pad_token_id=tokenizer.pad_token_id
    )
    head = sum(p.numel() for name, p in model.named_parameters() if ".modules_to_save." in name)
    assert head
    trainer = RewardTrainer(
        model=model, args=RewardConfig(output_dir=str(tmp_path), max_length=32, **COMMON),
        train_dataset=Dataset.from_list(PAIRS), processing_class=tokenizer,
    )  # fmt: skip
    assert all(entry["loss"] > 0 for entry in after(trainer, plan, model, head=head))


def test_adapters_move_in_supervised_training(tmp_path, tokenizer):
    from trl import SFTConfig, SFTTrainer

    _, model = adapted()
    rows = Dataset.from_list([{"prompt": p["prompt"], "completion": p["chosen"]} for p in PAIRS])
    trainer = SFTTrainer(
        model=model, args=SFTConfig(output_dir=str(tmp_path), max_length=32, **COMMON | {"max_steps": 7}),
        train_dataset=rows, processing_class=tokenizer,
    )  # fmt: skip
    placement = loratlas.DynamicPlacement(
        policy="random", head=4, placement="q,v,ffn.down", on_decision=lambda _: None
    ).install(trainer)
    trainer.train()
    moved(placement, model)
    logged = [entry for entry in trainer.state.log_history if "mean_token_accuracy" in entry]
    assert len(logged) == 7  # what is computed for a decision is not logged


def test_adapters_move_in_training_on_preferences(tmp_path, tokenizer):
    from trl import DPOConfig, DPOTrainer

    arguments = DPOConfig(output_dir=str(tmp_path), max_length=32, **COMMON | {"max_steps": 7})
    rows = Dataset.from_list(PAIRS)
    _, model = adapted()
    doubled = DPOTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    with pytest.raises(SettingsError, match="a second adapter named ref"):
        loratlas.DynamicPlacement().install(doubled)

    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    trainer = DPOTrainer(
        model=base, args=arguments, train_dataset=rows, processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"]),
    )  # fmt: skip
    loratlas.faster(trainer.model)
    placement = loratlas.DynamicPlacement(
        policy="random", head=4, placement="q,v,ffn.down", on_decision=lambda _: None
    ).install(trainer)
    trainer.train()
    moved(placement, trainer.model)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert all(math.isfinite(loss) for loss in losses)


def moved(placement, model):
    """Adapters moved, their layers still compute fast, and ranks are what the plan of the moves says."""
    assert placement.moves
    (decision,) = placement.decisions
    assert decision.loss_after == pytest.approx(decision.loss_before, abs=0.5)
    assert decision.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    lean = [m for m in model.modules() if type(m).__module__ == "loratlas.adapters.layers.lean_lora"]
    assert len(lean) == sum(rank > 0 for rank in placement.ranks.values())
