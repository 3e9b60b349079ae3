"""What the proof calls exact is exact, and everything else is exact under padding: all twenty types, live."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.tiny import TYPES, tiny_model

from loratlas.data.batches import packed_attention as attention
from loratlas.data.batches import packing_proof
from loratlas.data.batches.batching import collate
from loratlas.data.batches.packing import forward
from loratlas.data.batches.packing_proof import prove_packing
from loratlas.data.examples import Example

PADDED = {"gptj", "gpt_neo", "falcon", "bloom", "mpt"}
"""Types whose attention does not go through transformers' interface."""

LENGTHS = (7, 30, 1, 19, 2, 44, 3)


def examples(lengths=LENGTHS, vocabulary=96, seed=3) -> list[Example]:
    random = np.random.default_rng(seed)
    made = []
    for row, n in enumerate(lengths):
        marks = random.random(n) < 0.7
        marks[0] = False
        made.append(
            Example(input_ids=random.integers(0, vocabulary, n).astype(np.int32), labelled=marks, row=row)
        )
    return made


def plainly_alone(model, made: list[Example]) -> torch.Tensor:
    """The model's own call on one example after the other, without anything of ours; logits at counted places."""
    listed = []
    for example in made:
        logits = model(input_ids=torch.tensor(example.input_ids, dtype=torch.long)[None]).logits[0]
        listed.append(logits[:-1][torch.from_numpy(example.labelled[1:])])
    return torch.cat(listed)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.shape == wanted.shape
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


@pytest.mark.parametrize("model_type", TYPES)
def test_proof_and_forward_on_every_type(model_type):
    model = tiny_model(model_type)
    proof = prove_packing(model)
    assert proof.exact == (model_type not in PADDED), proof.reason
    assert proof.reason.startswith("packed" if proof.exact else "padded")
    with torch.no_grad():
        expected = plainly_alone(model, examples())
        close(forward(model, collate(examples(), packed=False)), expected)
        if proof.exact:
            assert proof.worst < 1e-5
            close(forward(model, collate(examples(), packed=True)), expected)


@pytest.mark.parametrize("model_type", sorted(set(TYPES) - PADDED))
def test_the_proof_holds_in_bfloat16(model_type):
    proof = prove_packing(tiny_model(model_type).to(torch.bfloat16))
    assert proof.exact, proof.reason
    assert 0 < proof.worst < 0.2


@pytest.mark.parametrize("model_type", ["mistral", "phi3", "starcoder2", "gemma2", "gemma3_text", "qwen2"])
def test_windows_are_followed_beyond_their_length(model_type):
    window = {"sliding_window": 6}
    if model_type == "qwen2":
        window |= {"use_sliding_window": True, "max_window_layers": 1}
    model = tiny_model(model_type, **window)
    assert prove_packing(model).exact
    wide = tiny_model(model_type, **{**window, "sliding_window": 60})
    with torch.no_grad():
        result = forward(model, collate(examples(), packed=True))
        close(result, plainly_alone(model, examples()))
        assert (
            result - plainly_alone(wide, examples())
        ).norm() > 1e-3 * result.norm()  # the window matters here


def leaking(module, query, key, value, mask, scaling=None, **_):
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return out.transpose(1, 2), None


def unscaled(*arguments, scaling=None, **options):
    return attention.packed_attention(*arguments, scaling=1.1 * scaling, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
def test_the_proof_catches_attention_across_examples(monkeypatch, model_type, dtype):
    from transformers import AttentionInterface

    model = tiny_model(model_type).to(dtype)
    monkeypatch.setattr(attention, "register", lambda: AttentionInterface.register(attention.NAME, leaking))
    proof = prove_packing(model)
    assert not proof.exact
    assert "differ by" in proof.reason


def seeping(module, query, key, value, mask, **options):
    out, _ = attention.packed_attention(module, query, key, value, mask, **options)
    return out + 3e-4 * value.mean(), None


def test_the_proof_catches_a_leak_that_could_pass_for_rounding(monkeypatch):
    from transformers import AttentionInterface

    monkeypatch.setattr(attention, "register", lambda: AttentionInterface.register(attention.NAME, seeping))
    proof = prove_packing(tiny_model("llama"))
    assert not proof.exact
    assert "tokens of one example change the logits of others" in proof.reason


def test_the_proof_catches_a_wrong_scale(monkeypatch):
    from transformers import AttentionInterface

    monkeypatch.setattr(attention, "register", lambda: AttentionInterface.register(attention.NAME, unscaled))
    assert not prove_packing(tiny_model("llama")).exact


def test_the_proof_catches_positions_that_do_not_restart(monkeypatch):
    def running_on(batch):
        from dataclasses import replace

        return replace(batch, position_ids=torch.arange(batch.tokens)[None] % 64)

    real = packing_proof.collate
    monkeypatch.setattr(
        packing_proof,
        "collate",
        lambda made, packed: running_on(real(made, packed=True)) if packed else real(made, packed=False),
    )
    assert not prove_packing(tiny_model("gpt2")).exact  # learned positions: the shift shows


def test_a_window_that_is_not_handed_over_counts_only_if_it_is_reached(monkeypatch):
    model = tiny_model("llama")
    model.config.sliding_window = 32  # named by the config, known to no layer
    assert not prove_packing(model).exact
    assert prove_packing(model, max_length=32).exact


def test_the_proof_leaves_the_model_as_it_was():
    model = tiny_model("llama").train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    before = torch.random.get_rng_state()
    prove_packing(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.config._attn_implementation == "sdpa"
    assert not model.lm_head._forward_pre_hooks
    assert not model.get_input_embeddings()._forward_hooks
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())


def adapted(model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj", "lm_head"], init_lora_weights=False)
    return get_peft_model(model, config)


def gradients(model, batch) -> torch.Tensor:
    model.zero_grad()
    torch.nn.functional.cross_entropy(forward(model, batch), batch.answers, reduction="sum").backward()
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.requires_grad])


def test_adapters_are_part_of_the_pass_and_the_proof():
    model = adapted(tiny_model("llama", tie_word_embeddings=False))
    assert prove_packing(model).exact
    packed, padded = (collate(examples(), packed=packed) for packed in (True, False))
    with torch.no_grad():
        close(forward(model, packed), plainly_alone(model, examples()))
        with model.disable_adapter():
            bare = forward(model, packed)
        assert (bare - forward(model, packed)).norm() > 1e-3 * bare.norm()
    close(gradients(model, packed), gradients(model, padded))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_recomputes_inside_the_right_batch(reentrant):
    model = adapted(tiny_model("llama", tie_word_embeddings=False)).train()
    batch, other = collate(examples(), packed=True), collate(examples((9, 4), seed=8), packed=True)
    expected = gradients(model, batch)
    inner = model.get_base_model()
    inner.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
    inner.enable_input_require_grads()
    model.zero_grad()
    loss = torch.nn.functional.cross_entropy(forward(model, batch), batch.answers, reduction="sum")
    forward(model, other)  # another batch passes before the first one's backward
    loss.backward()
    result = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.requires_grad])
    close(result, expected)


def test_only_counted_rows_reach_the_output_embedding():
    model = tiny_model("llama")
    rows = []
    model.lm_head.register_forward_hook(lambda _m, inputs, _o: rows.append(inputs[0].shape[-2]))
    batch = collate(examples(), packed=True)
    with torch.no_grad():
        forward(model, batch)
    assert rows == [batch.labelled]
    assert batch.labelled < batch.tokens


def test_a_model_without_an_output_module_gives_the_same_rows(monkeypatch):
    model = tiny_model("llama")
    batch = collate(examples(), packed=True)
    with torch.no_grad():
        expected = forward(model, batch)
        monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
        close(forward(model, batch), expected)


def test_autocast_passes_through():
    model, batch = tiny_model("llama"), collate(examples(), packed=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        result = forward(model, batch).float()
    with torch.no_grad():
        expected = forward(model, batch)
    assert float((result - expected).norm() / expected.norm()) < 0.05


def test_the_real_base_packs(shared):
    from transformers import AutoModelForCausalLM

    for dtype, worst in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        model = AutoModelForCausalLM.from_pretrained(shared("models/llama-mini"), dtype=dtype)
        proof = prove_packing(model)
        assert proof.exact, proof.reason
        assert proof.worst < worst
