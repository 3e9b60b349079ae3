"""Adapters at exactly the named sites: patterns, proof, seeds, initialisations, refusals."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny import lora_layers, tiny_anatomy, tiny_config, tiny_model

from loratlas.adapters.attach import INITS, attach, lora_config, trainable
from loratlas.adapters.patterns import anchored, exact
from loratlas.adapters.plan_row import PlanRow
from loratlas.errors import AttachError, SettingsError
from loratlas.placement.plan import place

NAME = st.from_regex(r"[a-z]{1,2}(\.([a-z]|[0-9]{1,2})){0,4}", fullmatch=True)


@given(st.lists(NAME, min_size=1, max_size=12), st.lists(NAME, max_size=12))
def test_patterns_match_these_names_and_no_other(names, others):
    pattern = exact(names)
    for name in names:
        assert re.fullmatch(pattern, name)
        # As PEFT matches the keys of rank_pattern.
        assert re.match(rf"(.*\.)?({anchored(names)})$", name)
    for other in (*others, *(f"x.{name}" for name in names), *(f"{name}.x" for name in names)):
        if other not in names:
            assert not re.fullmatch(pattern, other)
            assert not re.match(rf"(.*\.)?({anchored(names)})$", other)


def test_dots_are_dots():
    assert not re.fullmatch(exact(["h.0.q"]), "hx0xq")


def rows_of(model_type, text, **more):
    return place(tiny_anatomy(model_type), text, **more).rows


def test_the_suffix_trap_on_gpt2():
    """`c_proj` names two roles there: a suffix list adapts both, a plan the one that was meant."""
    import copy

    from peft import LoraConfig, get_peft_model

    model = tiny_model("gpt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        suffixes = LoraConfig(
            r=4, target_modules=["c_attn", "c_proj"], task_type="CAUSAL_LM", fan_in_fan_out=True
        )
        trapped = get_peft_model(copy.deepcopy(model), suffixes)
    attention = place(tiny_anatomy("gpt2"), "attention:4").attach(model)
    assert any("mlp.c_proj" in name for name in lora_layers(trapped))
    assert not any("mlp" in name for name in lora_layers(attention))
    assert trainable(trapped) > trainable(attention)


def test_paths_of_many_sites_are_kept_whole(tmp_path):
    """PEFT shortens lists of 20 and more names to suffixes; one expression it leaves alone."""
    from peft import LoraConfig

    rows = rows_of("llama", "all:2")
    assert len(rows) >= 20
    adapted = attach(rows, tiny_model("llama"))
    adapted.peft_config["default"].save_pretrained(str(tmp_path))
    kept = LoraConfig.from_pretrained(str(tmp_path)).target_modules
    assert isinstance(kept, str)
    assert all(re.fullmatch(kept, row.site.module) for row in rows)
    assert not re.fullmatch(kept, "mlp.down_proj")


def test_ranks_and_scales_by_site():
    plan = place(tiny_anatomy("gpt2"), "attn.o:2 + ffn.down@0:5 + attn.qkv@1:3 + ffn.up@0:2", rslora=True)
    layers = lora_layers(plan.attach(tiny_model("gpt2")))
    assert {name: layer.r["default"] for name, layer in layers.items()} == {
        row.site.module: row.rank for row in plan.rows
    }
    for row in plan.rows:
        assert layers[row.site.module].scaling["default"] == pytest.approx(2 * row.rank / row.rank**0.5)


def test_proof_names_the_extra_and_the_missing():
    from peft import LoraConfig, get_peft_model

    from loratlas.adapters.peft_check import differences

    rows = rows_of("llama", "q:2")
    with pytest.raises(AttachError, match=r"refuses|not adapt"):
        lora_config(rows, model=tiny_config("gpt2"))
    with pytest.raises(AttachError, match=r"would not adapt model\.layers\.2"):
        lora_config(rows, model=tiny_config("llama", num_hidden_layers=2))
    loose = get_peft_model(
        tiny_model("llama"), LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"])
    )
    assert "v_proj as well" in differences(rows, loose, "default", False)
    wrong = [replace(rows[0], rank=1), *rows[1:]]
    exact_ = attach(rows, tiny_model("llama"))
    assert "rank 2" in differences(wrong, exact_, "default", False)
    assert "scale 2.0" in differences([replace(rows[0], alpha=1.0), *rows[1:]], exact_, "default", False)


def test_the_proof_accepts_a_config_a_model_and_an_adapted_model():
    rows = rows_of("phi3", "attention:2")
    model = tiny_model("phi3")
    for source in (tiny_config("phi3"), model, attach(rows, model)):
        assert lora_config(rows, model=source).r == 2
    with pytest.raises(AttachError, match="no model"):
        lora_config(rows)


def test_the_seed_alone_decides_the_initial_weights():
    import torch

    def weights(seed, disturb):
        torch.manual_seed(disturb)
        before = torch.random.get_rng_state()
        adapted = attach(rows_of("llama", "q,down:2"), tiny_model("llama"), seed=seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        return {name: p.detach().clone() for name, p in adapted.named_parameters() if p.requires_grad}

    one, same, other = weights(3, 0), weights(3, 99), weights(4, 0)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert all(not tensor.any() for name, tensor in one.items() if "lora_B" in name)


def test_adapters_are_float32_on_a_bfloat16_base():
    import torch

    adapted = attach(rows_of("llama", "all:2"), tiny_model("llama").to(torch.bfloat16))
    assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in adapted.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_the_mode_of_the_model_is_kept():
    assert not attach(rows_of("gpt2", "all:2"), tiny_model("gpt2"), dropout=0.5).training
    assert attach(rows_of("gpt2", "all:2"), tiny_model("gpt2").train()).training


@pytest.mark.parametrize("init", [False, *INITS[:-1], "pissa_niter_2"])
def test_initialisations_without_data(init):
    adapted = attach(rows_of("gpt2", "all:4"), tiny_model("gpt2"), init=init, seed=1)
    assert trainable(adapted) == sum(row.trainable for row in rows_of("gpt2", "all:4"))


@pytest.mark.parametrize("init", ["eva", "corda", "lora_ga", "loftq", "pissa_niter_x", "kaiming", None])
def test_initialisations_that_need_more_are_refused(init):
    with pytest.raises(SettingsError):
        attach(rows_of("gpt2", "all:4"), tiny_model("gpt2"), init=init)


def test_bad_rows_and_settings():
    rows = rows_of("gpt2", "all:3")
    with pytest.raises(SettingsError, match="dropout"):
        lora_config(rows, dropout=1.0, prove=False)
    with pytest.raises(SettingsError, match="even ranks"):
        lora_config(rows, init="orthogonal", prove=False)
    with pytest.raises(AttachError, match="without rows"):
        lora_config([], prove=False)
    with pytest.raises(AttachError, match="twice"):
        lora_config([rows[0], rows[0]], prove=False)
    inert = PlanRow(site=replace(rows[0].site, flags=frozenset({"inert"})), rank=1, alpha=1.0)
    with pytest.raises(AttachError, match="by name"):
        lora_config([inert], prove=False)


def test_a_model_that_is_not_the_plans_stays_untouched():
    model = tiny_model("gpt2")
    with pytest.raises(AttachError, match=r"without model\.layers"):
        attach(rows_of("llama", "q:2"), model)
    assert not lora_layers(model)
    adapted = attach(rows_of("gpt2", "all:2"), model)
    with pytest.raises(AttachError, match="already"):
        attach(rows_of("gpt2", "all:2"), adapted)


def test_attaching_again_after_unloading_is_silent_and_exact():
    model = tiny_model("opt")
    for seed in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            adapted = attach(rows_of("opt", "attention:2"), model, seed=seed)
        model = adapted.unload()
    assert not lora_layers(model)


def test_a_named_embedding_or_head_trains_where_it_is_not_tied():
    plan = place(tiny_anatomy("llama"), "embed:2 + head.lm:3")
    adapted = plan.attach(tiny_model("llama"))
    assert trainable(adapted) == plan.trainable
    assert len(lora_layers(adapted)) == 2


def test_a_head_of_another_kind_beside_conv1d():
    """PEFT flips its fan_in_fan_out from layer to layer there; each layer has to get its own."""
    import torch

    from loratlas.anatomy.read import read

    model = tiny_model("gpt2", tie_word_embeddings=False)
    plan = place(read(model), "all:2 + head.lm:3")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan.to_peft(model)
        adapted = plan.attach(model)
    assert trainable(adapted) == plan.trainable
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
        tokens = torch.arange(3, 27)[None]
        wanted = adapted(input_ids=tokens).logits
        merged = adapted.merge_and_unload()(input_ids=tokens).logits
    torch.testing.assert_close(merged, wanted, rtol=1e-4, atol=1e-4)
