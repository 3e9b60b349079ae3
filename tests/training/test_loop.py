"""What a run does beyond the laws: it learns, it ends honestly, and its seeds draw what they should."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.training.small import adapted, encoded, weights, wrap

from loratlas.errors import DataError, SettingsError
from loratlas.evaluation.score import score
from loratlas.training.loop import fit
from loratlas.training.settings import Settings

FAST = Settings(steps=6, lr=1e-2, batch_size=4, dtype="float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_eight_rows_are_learnt_by_heart(dtype):
    data, model = facts(8), embedded(dtype)
    before = score(model, data, packed=True).token_mean_nll
    result = fit(model, data, Settings(steps=40, lr=1e-2, batch_size=8, dtype=dtype))
    after = score(model, data, packed=True).token_mean_nll
    assert before > 2
    assert after < 0.1
    assert result.train_nll < 0.15
    assert len(result.curve) == 40


def embedded(dtype):
    """The embedded base, a low rank at every linear map of its layers."""
    from loratlas.demo import base_path
    from loratlas.models.load import load_model
    from loratlas.placement.plan import place

    model = load_model(base_path("demo:llama-mini"), dtype=dtype)
    return place(model, "all:8").attach(model, seed=0)


def facts(rows):
    """Rows of an embedded task."""
    from loratlas.data.encode import encode, load_tokenizer
    from loratlas.demo import base_path, generate

    return encode(
        generate("demo:facts-300", split="train", rows=rows),
        load_tokenizer(base_path("demo:llama-mini")),
        max_length=64,
    )


def test_bfloat16_base_keeps_float32_masters():
    data, model = encoded(8), adapted(dtype="bfloat16")
    kinds = set()
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.register_forward_pre_hook(lambda m, _: kinds.add(m.lora_A["default"].weight.dtype))
    fit(model, data, replace(FAST, dtype="bfloat16"), packed=True)
    assert kinds == {torch.bfloat16}
    weight = weights(model)
    assert {value.dtype for value in weight.values()} == {torch.float32}
    # MasterWeights hold what bfloat16 cannot: most weights are not their own rounding.
    value = torch.cat([v.flatten() for v in weight.values()])
    assert float((value == value.bfloat16().float()).float().mean()) < 0.1
    assert all(parameter.grad is None for parameter in model.parameters())


def test_only_the_adapter_moves():
    data, model = encoded(), adapted()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(model, data, FAST)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


@pytest.mark.parametrize("lr", [1e6, 1e30])
def test_divergence_stops_and_leaves_the_last_good_state(tmp_path, lr):
    data, model = encoded(), adapted("gpt2", rank=8)
    events = []
    settings = replace(FAST, steps=50, lr=lr, warmup=0.0, schedule="constant")
    result = fit(model, data, settings, out=tmp_path, on_step=events.append, packed=True)
    assert result.diverged
    assert result.diverged_at == result.steps + 1 == len(events) + 1
    assert result.steps < 50
    assert all(math.isfinite(event.nll) for event in events)
    assert all(torch.isfinite(value).all() for value in weights(model).values())
    assert np.isfinite(score(model, data, packed=True).token_mean_nll)
    # On disk as well: what is taken up from there is over, and is the same adapter.
    again = adapted("gpt2", rank=8)
    resumed = fit(again, data, settings, out=tmp_path, resume=True, packed=True)
    assert (resumed.diverged_at, resumed.steps) == (result.diverged_at, result.steps)
    weight = weights(again)
    assert all(torch.equal(value, weight[name]) for name, value in weights(model).items())


def test_a_gradient_that_is_nan_ends_the_run_before_the_update():
    data, model = encoded(), adapted()
    factor = next(m for m in model.modules() if hasattr(m, "lora_A")).lora_A["default"]
    calls = []

    def poison(_module, _inputs, output):
        calls.append(None)
        if len(calls) == 3:
            output.register_hook(lambda gradient: gradient * float("nan"))

    factor.register_forward_hook(poison)
    kept = []

    def keep(_event):
        kept.append([p.detach().clone() for p in model.parameters() if p.requires_grad])

    # The hook is on the factor's module, which only PEFT's own forward pass calls.
    settings = replace(FAST, steps=5)
    from loratlas.training.step import gradients

    lean, gradients.lean = gradients.lean, _nothing
    try:
        result = fit(model, data, settings, on_step=keep, packed=True)
    finally:
        gradients.lean = lean
    assert (result.diverged_at, result.steps) == (3, 2)
    assert all(torch.equal(a, b) for a, b in zip(kept[-1], weights(model).values(), strict=True))


def _nothing(_model):
    from contextlib import nullcontext

    return nullcontext()


def test_lora_plus_moves_b_faster():
    # AdamW's first step is lr · sign(g), whatever the gradient's size.
    data, model = encoded(), adapted()
    before = weights(model)
    settings = replace(FAST, steps=1, lr=1e-3, warmup=0.0, loraplus=8.0, schedule="constant")
    fit(model, data, settings, packed=True)
    for name, value in weights(model).items():
        moved = float((value - before[name]).abs().median())
        assert moved == pytest.approx(8e-3 if ".lora_B." in name else 1e-3, rel=0.02), name


def test_seed_decides_everything_and_nothing_leaks():
    data = encoded()
    first, second, third = (adapted(lora_dropout=0.2) for _ in range(3))
    settings = replace(FAST, dropout=0.2)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    a = fit(first, data, settings, packed=True)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    b = fit(second, data, settings, packed=True)
    c = fit(third, data, replace(settings, seed=1), packed=True)
    assert [p.nll for p in a.curve] == [p.nll for p in b.curve]
    assert [p.nll for p in a.curve] != [p.nll for p in c.curve]


def test_evaluation_within_a_run_does_not_change_it():
    data, judged = encoded(), encoded(8, seed=1)
    first, second = (adapted(lora_dropout=0.2) for _ in range(2))
    settings = replace(FAST, dropout=0.2)
    fit(first, data, settings)
    seen = []
    result = fit(second, data, replace(settings, evaluate_every=2), evaluate=judged, on_step=seen.append)
    weight = weights(second)
    assert all(torch.equal(value, weight[name]) for name, value in weights(first).items())
    assert [event.step for event in seen if event.evaluation is not None] == [2, 4, 6]
    assert result.eval_nll == pytest.approx(score(second, judged, packed=True).token_mean_nll, rel=1e-6)
    assert [point.step for point in result.curve if point.evaluation is not None] == [2, 4, 6]


def test_early_stop_gives_the_best_adapter_back():
    data, judged, model = encoded(4), encoded(8, seed=1), adapted()
    settings = replace(FAST, steps=60, lr=5e-2, early_stop=3, evaluate_every=2)
    seen = []
    result = fit(model, data, settings, evaluate=judged, on_step=seen.append)
    losses = [event.evaluation for event in seen if event.evaluation is not None]
    assert result.stopped_early
    assert result.steps < 60
    assert min(losses) not in losses[-3:]
    assert score(model, judged, packed=True).token_mean_nll == pytest.approx(min(losses), rel=1e-6)


def test_counts_and_events():
    data, model = encoded(10), adapted()
    events = []
    result = fit(model, data, replace(FAST, steps=5, log_every=2), on_step=events.append, packed=True)
    lengths = [len(example) for example in data.examples]
    # Five steps of four are two epochs over ten.
    assert result.tokens == events[-1].tokens == 2 * sum(lengths)
    assert result.labelled_tokens == 2 * data.report.answer_tokens
    assert [event.step for event in events] == [1, 2, 3, 4, 5]
    assert [point.step for point in result.curve] == [2, 4, 5]
    assert all(event.steps == 5 and event.norm > 0 for event in events)
    assert [event.seconds_left for event in events[:4]] == [None] * 4, "the first steps are no basis"
    assert events[-1].seconds_left == 0
    assert result.step_seconds > 0
    assert result.tokens_per_second > result.labelled_tokens_per_second > 0
    assert result.peak_bytes
    assert result.peak_bytes > 4 * sum(p.numel() for p in model.parameters())


def test_modes_and_checkpointing_are_put_back():
    data, model = encoded(), adapted()
    model.eval()
    fit(model, data, replace(FAST, checkpointing=True))
    assert not any(module.training for module in model.modules())
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert type(next(m for m in model.modules() if hasattr(m, "lora_A"))).__name__ == "Linear"


def test_packing_is_decided_by_proof_and_said():
    data = encoded()
    result = fit(adapted(), data, FAST)
    assert (result.packing, "alone" in result.packing_reason) == ("packed", True)
    result = fit(adapted(), data, replace(FAST, packing="off"))
    assert (result.packing, result.packing_reason) == ("padded", "as asked")
    with pytest.raises(SettingsError, match="does not allow it"):
        fit(bloom(), data, replace(FAST, packing="on"))
    result = fit(bloom(), data, FAST)
    assert result.packing == "padded"
    assert result.packing_reason


def bloom():
    """A type that the proof refuses."""
    from peft import LoraConfig, get_peft_model
    from tests.tiny import tiny_model

    return get_peft_model(tiny_model("bloom"), LoraConfig(r=2, target_modules=["query_key_value"]))


def test_what_cannot_be_trained_is_refused():
    data = encoded()
    with pytest.raises(DataError, match="no examples"):
        fit(adapted(), wrap([]), FAST)
    with pytest.raises(SettingsError, match="bfloat16"):
        fit(adapted(), data, replace(FAST, dtype="bfloat16"))
    frozen = adapted()
    frozen.requires_grad_(False)
    with pytest.raises(SettingsError, match="requires a gradient"):
        fit(frozen, data, FAST)
    with pytest.raises(SettingsError, match="evaluate"):
        fit(adapted(), data, replace(FAST, early_stop=2))
    with pytest.raises(SettingsError, match="subset"):
        fit(adapted(), data, replace(FAST, subset=500))


def test_weights_that_are_no_numbers_after_the_last_update_are_refused(tmp_path):
    """No later loss would show it: the update itself overflows."""
    model, data = adapted(), encoded()
    settings = replace(FAST, steps=1, lr=1e40, warmup=0.0)
    before = weights(model)
    result = fit(model, data, settings, packed=True, out=tmp_path)
    assert (result.diverged, result.diverged_at) == (True, 1)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    again = adapted()
    assert fit(again, data, settings, packed=True, out=tmp_path, resume=True).diverged
    assert all(torch.isfinite(value).all() for value in weights(again).values())
