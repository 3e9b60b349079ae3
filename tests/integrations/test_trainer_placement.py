"""Adapters that move inside of transformers' Trainer: one process."""

from __future__ import annotations

import math

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.integrations.small_trainer import Rows, placed, resumable, trainer
from tests.tiny import tiny_model
from tests.training.small import adapted, weights
from transformers import TrainerCallback

import loratlas
from loratlas.adapters.adam_moments import lengthened
from loratlas.dynamic import gradient_watch
from loratlas.errors import OutputError, SettingsError
from loratlas.integrations.trainer.torch_adam import MovedAdam

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
TOKENS = torch.arange(3, 30)[None]


def same(one, two):
    kept = weights(two)
    return weights(one).keys() == kept.keys() and all(
        torch.equal(value, kept[name]) for name, value in weights(one).items()
    )


class At(TrainerCallback):
    """Does something when a step is over."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            self.what()


def test_adapters_move_and_the_tree_is_an_ordinary_adapter_in_mid_run(tmp_path):
    seen = {}

    def save():
        own.save_model(str(tmp_path / "half"))
        with torch.no_grad():
            own.model.eval()
            seen["logits"] = own.model(input_ids=TOKENS).logits
            own.model.train()

    own = trainer(tmp_path)
    placement = placed(own)
    own.add_callback(At(5, save))
    own.train()
    assert [decision.step for decision in placement.decisions] == [4, 6]
    assert placement.moves
    for move in placement.moves:
        assert move.loss_before > 0
        assert move.reason == "drawn at random"
    used = sum(p.numel() for p in own.model.parameters() if p.requires_grad)
    assert placement.decisions[-1].parameters == used <= sum(p.numel() for p in weights(adapted()).values())
    held = [p for group in own.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in own.model.parameters() if p.requires_grad}
    assert {id(p) for p in own.optimizer.optimizer.state} == {id(p) for p in held}
    half = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "half").eval()
    with torch.no_grad():
        assert torch.equal(half(input_ids=TOKENS).logits, seen["logits"])


def test_watching_alone_changes_no_bit(tmp_path):
    watched, plain = trainer(tmp_path), trainer(tmp_path)
    placed(watched, policy="none")
    watched.train()
    plain.train()
    assert same(watched.model, plain.model)


@pytest.mark.parametrize(
    ("name", "how"),
    [("weighted", "fp32"), ("gradient", "bf16"), ("elalora", "fp32"), ("adalora", "bf16")],
)
def test_policies_decide_and_a_resumed_run_is_the_run(tmp_path, name, how, monkeypatch):
    monkeypatch.setattr(gradient_watch, "SHARE", 1.0)  # every step of a model this small
    options = {"bf16": how == "bf16", "save_strategy": "steps", "save_steps": 1, "max_steps": 16}
    whole = trainer(tmp_path, **options)
    placement = placed(whole, policy=name)
    whole.train()
    assert [decision.step for decision in placement.decisions] == [4, 6, 8]
    for stop in (3, 6, 11):
        resumed = trainer(tmp_path, **{**options, "save_strategy": "no"})
        other = placed(resumed, policy=name)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
        assert other.decisions == placement.decisions
        assert same(resumed.model, whole.model)


def test_accumulated_micro_batches_are_one_batch(tmp_path):
    whole, small = (
        trainer(tmp_path, per_device_train_batch_size=4),
        trainer(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4),
    )
    one, two = placed(whole, policy="energy"), placed(small, policy="energy")
    whole.train()
    small.train()
    assert one.ranks == two.ranks
    for ours, theirs in zip(one.decisions, two.decisions, strict=True):
        assert ours.loss_before == pytest.approx(theirs.loss_before, abs=1e-4)
    assert all(
        torch.allclose(value, weights(small.model)[name], atol=1e-3)
        for name, value in weights(whole.model).items()
    )


def test_gradients_are_read_before_they_are_clipped(tmp_path):
    norms = []

    def look():
        slope = placement._installed.controller._statistics._flat["slope"]
        norms.append(float(torch.cat(slope).norm()))

    own = trainer(tmp_path, max_grad_norm=1e-3)
    placement = placed(own)
    own.add_callback(At(2, look))
    own.train()
    logged = next(entry["grad_norm"] for entry in own.state.log_history if entry.get("step") == 2)
    assert norms[0] == pytest.approx(logged, rel=1e-5)
    assert norms[0] > 10 * 1e-3


def test_epochs_and_unclipped_steps(tmp_path):
    own = trainer(tmp_path, max_steps=-1, num_train_epochs=1, max_grad_norm=0, rows=Rows(48))
    placement = placed(own)
    own.train()
    assert [decision.step for decision in placement.decisions] == [4, 6]


def test_the_best_checkpoint_has_ranks_of_its_own(tmp_path):
    own = trainer(
        tmp_path, save_strategy="steps", eval_strategy="steps", save_steps=2, eval_steps=2,
        load_best_model_at_end=True, metric_for_best_model="eval_loss", learning_rate=0.5,
    )  # fmt: skip
    placed(own)
    own.train()
    best = own.state.best_model_checkpoint
    kept = load_file(f"{best}/adapter_model.safetensors")
    now = {name.replace(".default", ""): value for name, value in weights(own.model).items()}
    assert kept.keys() == now.keys()
    assert all(torch.equal(kept[name], value) for name, value in now.items())


def test_a_directions_age_is_its_own():
    """What was there and what is new step as if each were a parameter by itself."""
    torch.manual_seed(0)
    options = {"lr": 1e-2, "weight_decay": 0.1}
    old, whole = (torch.nn.Parameter(torch.randn(2, 5)) for _ in range(2))
    with torch.no_grad():
        whole.copy_(old)
    one, two = torch.optim.AdamW([old], **options), torch.optim.AdamW([whole], **options)
    moved = MovedAdam(two)
    for _ in range(3):
        old.grad = torch.randn(2, 5)
        whole.grad = old.grad.clone()
        one.step()
        two.step()
    rows = torch.randn(1, 5)
    longer = torch.nn.Parameter(torch.cat([whole.detach(), rows]))
    moments = lengthened(moved.moments({"w": whole})["w"], (3, 5), dim=0, steps=3)
    moved.replace({"w": whole}, {"w": longer}, {"w": moments})
    young = torch.nn.Parameter(rows.clone())
    three = torch.optim.AdamW([young], **options)
    for _ in range(4):
        old.grad, young.grad = torch.randn(2, 5), torch.randn(1, 5)
        longer.grad = torch.cat([old.grad, young.grad])
        for each in (one, two, three):
            each.step()
    assert torch.allclose(longer.detach(), torch.cat([old, young]).detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["placement.safetensors", "placement.json"])
def test_a_damaged_checkpoint_is_refused(tmp_path, name):
    folder = resumable(tmp_path)
    path = tmp_path / "checkpoint-5" / name
    content = bytearray(path.read_bytes())
    rank = content.index(b": ", content.index(b'"ranks": ') + 9) + 2 if name.endswith("json") else -1
    content[rank] ^= 1
    path.write_bytes(bytes(content))
    own = trainer(tmp_path)
    placed(own)
    with pytest.raises(OutputError, match="SHA-256 differs"):
        own.train(resume_from_checkpoint=folder)


def test_a_decision_is_a_line_on_the_terminal(tmp_path, capsys):
    own = trainer(tmp_path)
    loratlas.DynamicPlacement(policy="random", head=4).install(own)
    own.train()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("placement")]
    assert "step 4: " in line
    assert len(line) <= 80


def test_losses_of_probes_are_finite_and_of_the_last_rows(tmp_path):
    own = trainer(tmp_path, learning_rate=0.0)
    placement = placed(own, policy="none")
    own.train()
    logged = next(entry["loss"] for entry in own.state.log_history if entry.get("step") == 4)
    (first, *_) = placement.decisions
    assert math.isfinite(first.loss_before)
    assert first.loss_before == pytest.approx(float(logged), abs=1e-4)


def test_installed_twice(tmp_path):
    own = trainer(tmp_path)
    placed(own)
    with pytest.raises(SettingsError, match="installed already"):
        placed(own)
