"""Verdicts of engines on adapters as people have them: README's plan, single layers, mixed ranks, stacks of experts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from loratlas.adapters.stored.safetensors_header import TensorEntry
from loratlas.errors import RequestError
from loratlas.serving.adapter_header import AdapterHeader
from loratlas.serving.base_outline import BaseOutline
from loratlas.serving.engine import DIFFERS, REFUSED, RIGHT
from loratlas.serving.engine_registry import ENGINES, engine_of

WIDTH, LAYERS = 32, 2
ALL = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")


def header(ranks: dict[str, int], *, layers=range(LAYERS), base: str = "llama", **config) -> AdapterHeader:
    tensors = {}
    for layer in layers:
        for name, rank in ranks.items():
            stem = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{stem}.lora_A.weight"] = TensorEntry(dtype="F32", shape=(rank, WIDTH))
            tensors[f"{stem}.lora_B.weight"] = TensorEntry(dtype="F32", shape=(WIDTH, rank))
    defaults = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": sorted(ranks)}
    return AdapterHeader(
        folder=Path("a"),
        config=defaults | config,
        tensors=tensors,
        base=BaseOutline(model_type=base, layers=LAYERS, heads=4, kv_heads=4, hidden=WIDTH),
    )


def verdicts(given: AdapterHeader) -> dict[str, str]:
    return {name: engine.verdict(given).verdict for name, engine in ENGINES.items()}


README = {
    "r": 8,
    "lora_alpha": 16.0,
    "target_modules": r"^(?:model\.layers\.(?:0|1)\.(?:self_attn\.(?:q|v)_proj|mlp\.down_proj))$",
    "rank_pattern": {r"^model\.layers\.(?:0|1)\.mlp\.down_proj$": 4},
    "alpha_pattern": {r"^model\.layers\.(?:0|1)\.mlp\.down_proj$": 8.0},
}


def test_the_plan_of_the_readme():
    given = header({"self_attn.q_proj": 8, "self_attn.v_proj": 8, "mlp.down_proj": 4}, **README)
    assert verdicts(given) == {
        "peft": RIGHT,
        "vllm": RIGHT,
        "sglang": REFUSED,
        "tgi": RIGHT,
        "lorax": RIGHT,
        "tensorrt-llm": REFUSED,
        "llama.cpp": DIFFERS,
        "ollama": REFUSED,
        "mlx": REFUSED,
    }
    reasons = ENGINES["llama.cpp"].verdict(given).reasons
    assert {reason.factor for reason in reasons} == {2.0}
    assert {reason.tensor.split(".")[-3] for reason in reasons} == {"down_proj"}
    assert "a list" in ENGINES["sglang"].verdict(given).reasons[0].why
    assert "unsigned" in ENGINES["ollama"].verdict(given).reasons[0].why


def test_one_rank_everywhere_is_read_by_all():
    given = header(dict.fromkeys(ALL, 8))
    assert set(verdicts(given).items()) == {(name, RIGHT) for name in ENGINES if name != "mlx"} | {
        ("mlx", REFUSED)
    }


def test_a_rank_that_kernels_pad_rescales_every_kind_but_the_first():
    given = header(dict.fromkeys(ALL, 4), r=4, lora_alpha=8)
    reasons = ENGINES["tgi"].verdict(given).reasons
    assert {reason.tensor.split(".")[-3] for reason in reasons} == {"k_proj", "v_proj", "o_proj"}
    assert {reason.factor for reason in reasons} == {0.5}


def test_single_layers_are_dropped_by_those_that_stack():
    given = header(dict.fromkeys(ALL, 8), layers=[1])
    for name in ("tgi", "lorax"):
        verdict = ENGINES[name].verdict(given)
        assert verdict.verdict == DIFFERS
        assert all(reason.what == "dropped" and "every layer" in reason.why for reason in verdict.reasons)
    assert ENGINES["vllm"].verdict(given).verdict == RIGHT


def test_rslora_is_lost_on_sglang_and_llama_cpp():
    given = header(dict.fromkeys(ALL, 16), r=16, lora_alpha=16, use_rslora=True)
    for name in ("sglang", "llama.cpp"):
        verdict = ENGINES[name].verdict(given)
        assert verdict.verdict == DIFFERS
        assert {reason.factor for reason in verdict.reasons} == {0.25}
    for name in ("vllm", "tgi", "lorax", "tensorrt-llm"):
        assert ENGINES[name].verdict(given).verdict == RIGHT


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("vllm", "use_dora", True),
        ("vllm", "lora_bias", True),
        ("vllm", "init_lora_weights", "pissa_niter_4"),
        ("vllm", "modules_to_save", ["lm_head"]),
        ("sglang", "use_dora", True),
        ("tensorrt-llm", "use_dora", True),
    ],
)
def test_options_that_an_engine_refuses(name, option, value):
    verdict = ENGINES[name].verdict(header(dict.fromkeys(ALL, 8), **{option: value}))
    assert verdict.verdict == REFUSED
    assert verdict.reasons[0].tensor == option


def test_ranks_above_a_limit():
    given = header(dict.fromkeys(ALL, 1024), r=1024)
    for name, limit in (("vllm", 512), ("tgi", 128), ("lorax", 128), ("tensorrt-llm", 64)):
        assert ENGINES[name].rank_for(1024) is None
        verdict = ENGINES[name].verdict(given)
        assert verdict.verdict == REFUSED
        assert str(limit) in verdict.reasons[0].why


def test_the_base_decides_as_well():
    tied = header({"self_attn.q_proj": 8, "self_attn.k_proj": 8, "self_attn.v_proj": 8})
    stem = "base_model.model.lm_head"
    tensors = {
        **tied.tensors,
        f"{stem}.lora_A.weight": TensorEntry(dtype="F32", shape=(8, WIDTH)),
        f"{stem}.lora_B.weight": TensorEntry(dtype="F32", shape=(90, 8)),
    }
    assert tied.base is not None
    untied = replace(tied, tensors=tensors)
    tied = replace(untied, base=replace(tied.base, tied=True))
    assert ENGINES["vllm"].verdict(untied).verdict == RIGHT
    assert ENGINES["vllm"].verdict(tied).verdict == DIFFERS
    assert ENGINES["llama.cpp"].verdict(tied).verdict == REFUSED
    assert ENGINES["vllm"].verdict(header({"attn.c_attn": 8}, base="gpt2")).verdict == REFUSED


def test_an_unknown_engine_names_the_nearest():
    with pytest.raises(RequestError, match=r"Instead: llama\.cpp"):
        engine_of("llamacpp")


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_explains_itself(name):
    engine = ENGINES[name]
    assert engine.name == name
    assert engine.reads
    assert engine.version
    assert engine.evidence in ("engine", "parser", "sources")
    assert type(engine).__doc__
