"""4-bit bases, for real: bitsandbytes has processors' code as well as cards'."""

from __future__ import annotations

import hashlib
import warnings

import pytest
import torch
from tests.training.small import encoded

import loratlas
from loratlas.adapters.attach import attach
from loratlas.adapters.stored.adapter_files import save_adapter
from loratlas.adapters.stored.load_adapter import load_adapter
from loratlas.errors import SettingsError
from loratlas.models.load import load_model
from loratlas.placement.plan import place
from loratlas.training.fleet.train_fleet import Fleet, Member
from loratlas.training.loop import fit
from loratlas.training.settings import Settings

pytest.importorskip("bitsandbytes", reason="bitsandbytes is tested in a process of its own, see the Makefile")
pytestmark = pytest.mark.filterwarnings("ignore:.*PEFT's own forward pass. Linear4bit")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def base_of(saved):
    return load_model(saved, dtype="float32", quantize="4bit")


def digest(model):
    result = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if "lora_" not in name:
            result.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return result.hexdigest()


def test_a_run_moves_the_adapter_and_no_bit_of_the_base(saved, tmp_path):
    base = base_of(saved)
    assert base.model.layers[0].self_attn.q_proj.weight.dtype == torch.uint8
    before = digest(base)
    plan = place(base, "all:4")
    model = attach(plan.rows, base, seed=0)
    settings = Settings(steps=30, lr=2e-2, batch_size=4, dtype="float32")
    outcome = fit(model, encoded(8), settings)
    assert outcome.curve[-1].nll < outcome.curve[0].nll - 0.5
    assert digest(model.get_base_model()) == before
    ids = torch.tensor([[5, 9, 31, 7]])
    wanted = model.eval()(ids).logits
    save_adapter(model, tmp_path / "adapter")
    again = load_adapter(base_of(saved), tmp_path / "adapter").eval()
    torch.testing.assert_close(again(ids).logits, wanted)


def test_looking_at_a_base_changes_no_gradient(saved):
    """bitsandbytes lays matrices out anew when a model is evaluated, and what it then gives has no gradient."""
    ids = torch.tensor([[5, 9, 31, 7, 50, 2]])

    def gradient(looked_at: bool) -> torch.Tensor:
        model = attach(place(base_of(saved), "q:4").rows, base_of(saved), seed=0)
        if looked_at:
            with torch.no_grad():
                model.eval()(ids)
        model.train()(ids, labels=ids).loss.backward()
        return model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight.grad

    assert gradient(False).abs().max() > 0
    torch.testing.assert_close(gradient(True), gradient(False))


def test_gradients_are_those_of_pefts_own_layers(saved):
    model = attach(place(base_of(saved), "all:4").rows, base_of(saved), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    ids = torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(1))

    def gradients():
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    own = gradients()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loratlas.faster(model)
    assert any("PEFT's own" in str(one.message) for one in said)
    lean = gradients()
    assert len(own) == 2 * 7 * 2
    assert own.keys() == lean.keys()
    for name, gradient in own.items():
        torch.testing.assert_close(lean[name], gradient)


def test_a_fleet_says_that_such_a_run_trains_alone(saved):
    base = base_of(saved)
    member = Member(rows=place(base, "all:4").rows, settings=Settings(steps=2, lr=1e-3, dtype="float32"))
    with pytest.raises(SettingsError, match="Linear4bit"):
        Fleet(base, encoded(8), [member])
