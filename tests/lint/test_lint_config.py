"""Configs as people publish them: forty with a fault that is found, twenty without one, and words that work."""

from __future__ import annotations

import json
import re
from functools import cache
from itertools import pairwise

import pytest
from tests import zoo

from loratlas.anatomy.read import read
from loratlas.errors import ModelError
from loratlas.lint.lint_config import lint, read_lora_config


@cache
def base(model_type: str, **changes):
    config = zoo.small(model_type, **changes)
    return config, read(config)


def found(model_type, fields, **changes):
    config, anatomy = base(model_type, **changes)
    return lint({"r": 4, "lora_alpha": 8, **fields}, anatomy, config)


QV = {"target_modules": ["q_proj", "v_proj"]}

# Model type, fields, the rule that has to speak, what it has to say.
BAD = [
    # names that hold more than was meant
    ("gpt2", {"target_modules": ["c_attn", "c_proj"]}, "collision", "4 attn.o, 4 ffn.down"),
    ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"]}, "collision", "attn.c_proj"),
    ("gpt_bigcode", {"target_modules": ["c_proj", "c_attn"]}, "collision", "mlp.c_proj"),
    ("bert", {"target_modules": ["query", "value", "dense"]}, "collision", "intermediate.dense"),
    ("roberta", {"target_modules": ["dense"]}, "collision", "ffn.up"),
    ("electra", {"target_modules": ["query", "dense"]}, "collision", "attention.output.dense"),
    ("mixtral", {"target_modules": "all-linear"}, "router", "mlp.gate"),
    ("mixtral", {"target_modules": ["q_proj", "gate"]}, "router", "router alone"),
    ("qwen2_moe", {"target_modules": "all-linear"}, "router", "exclude_modules"),
    ("olmoe", {"target_modules": r".*\.(q_proj|gate)"}, "router", "mlp.gate"),
    ("gemma3", {"target_modules": ["q_proj", "v_proj"]}, "other-tower", "vision tower"),
    ("gemma3", {"target_modules": "all-linear"}, "other-tower", "vision_tower"),
    ("gemma3", {"target_modules": r".*\.k_proj"}, "other-tower", "vision tower"),
    ("deepseek_v3", {"target_modules": ["gate_proj", "up_proj"]}, "experts", "routed experts"),
    ("deepseek_v3", {"target_modules": ["down_proj"]}, "experts", "target_parameters"),
    # names of another architecture
    ("llama", {"target_modules": ["query", "value"]}, "no-match", "q_proj"),
    ("llama", {"target_modules": ["c_attn"]}, "no-match", "q_proj"),
    ("gpt2", {"target_modules": ["q_proj", "v_proj"]}, "no-match", "c_attn"),
    ("bert", {"target_modules": ["q_proj"]}, "no-match", "query"),
    ("gpt_neox", {"target_modules": ["q_proj", "k_proj", "v_proj"]}, "no-match", "query_key_value"),
    ("phi3", {"target_modules": ["q_proj", "v_proj"]}, "no-match", "qkv_proj"),
    ("t5", {"target_modules": ["q_proj"]}, "no-match", "instead: q"),
    ("llama", {"target_modules": ["q_proj", "v_porj"]}, "no-match", "v_proj"),
    # prefixes and expressions
    (
        "llama",
        {"target_modules": ["base_model.model.model.layers.0.self_attn.q_proj"]},
        "no-match",
        "model.layers.0.",
    ),
    ("gemma3", {"target_modules": ["model.layers.0.self_attn.o_proj"]}, "no-match", "language_model"),
    ("gpt2", {"target_modules": ["h.0.attn.c_attn.weight"]}, "no-match", "c_attn"),
    ("llama", {"target_modules": "q_proj"}, "no-match", '["q_proj"]'),
    ("llama", {"target_modules": "q_proj|v_proj"}, "no-match", r".*\.(?:q_proj|v_proj)"),
    ("llama", {"target_modules": r".*\.(q_proj"}, "expression", "does not parse"),
    ("llama", {**QV, "exclude_modules": ["lm_haed"]}, "no-match", "lm_head"),
    # patterns and layers
    ("llama", {**QV, "rank_pattern": {"o_proj": 8}}, "pattern-no-match", "changes nothing"),
    ("llama", {**QV, "alpha_pattern": {"layers.0.q_proj": 8}}, "pattern-no-match", "q_proj"),
    ("llama", {**QV, "rank_pattern": {".*_proj": 8, "q_proj": 2}}, "pattern-shadowed", "q_proj before"),
    ("llama", {**QV, "layers_to_transform": [0, 31]}, "layers", "31"),
    (
        "gpt2",
        {"target_modules": ["c_attn"], "layers_to_transform": [0], "layers_pattern": "layers"},
        "layers",
        "h",
    ),
    ("llama", {"target_modules": r".*\.q_proj", "layers_to_transform": [0]}, "layers", "a list of names"),
    # experts
    (
        "mixtral",
        {"target_modules": ["model.layers.0.block_sparse_moe.experts.0.w1"]},
        "no-match",
        "target_parameters",
    ),
    ("mixtral", {"target_parameters": ["experts.w1"], "target_modules": ["q_proj"]}, "no-match", "experts"),
    # values and whole modules
    ("llama", {**QV, "modules_to_save": ["lm_haed"]}, "no-match", "lm_head"),
    ("gpt2", {"target_modules": ["c_attn"], "modules_to_save": ["lm_head"]}, "tied", "wte"),
    ("llama", {**QV, "lora_rank": 8}, "unknown-field", "instead: r"),
    ("llama", {**QV, "lora_alpha": 0}, "value", "do nothing"),
    ("llama", {**QV, "r": 4096}, "rank", "smaller side"),
    # a second set: names of other families, words, and options that exclude each other
    ("qwen2", {"target_modules": ["W_pack", "o_proj"]}, "no-match", "q_proj"),
    ("gptj", {"target_modules": ["q_proj", "v_proj", "c_attn"]}, "no-match", "no matrix of this name"),
    ("falcon", {"target_modules": ["q_proj", "v_proj"]}, "no-match", "query_key_value"),
    ("opt", {"target_modules": ["q_proj", "v_proj", "o_proj"]}, "no-match", "out_proj"),
    ("bart", {"target_modules": ["q", "v"]}, "no-match", "v_proj"),
    ("phi3", {"target_modules": ["qkv_proj", "gate_proj", "up_proj"]}, "no-match", "gate_up_proj"),
    ("qwen3_moe", {"target_modules": ["q_proj", "gate"]}, "router", "mlp.gate"),
    ("mamba", {"target_modules": ["q_proj"]}, "no-match", "in_proj"),
    ("mamba", {"target_modules": ["in_proj", "x_proj", "out_proj"]}, "refused", "out_proj"),
    ("t5", {"target_modules": ["SelfAttention.q", "DenseReluDense.wi_0"]}, "no-match", "instead: wi"),
    ("deepseek_v3", {"target_modules": ["q_a_proj", "kv_a_proj"]}, "no-match", "no matrix of this name"),
    ("llama", {"target_modules": ["self_attn"]}, "no-match", "q_proj"),
    ("llama", {"target_modules": ["model.layers.*.self_attn.q_proj"]}, "no-match", "self_attn.q_proj"),
    ("llama", {"target_modules": ["Q_proj", "V_proj"]}, "no-match", "q_proj"),
    ("llama", {"target_modules": []}, "refused", "target_modules"),
    ("llama", {**QV, "layers_to_transform": [-1]}, "layers", "0 to 3"),
    ("llama", {**QV, "modules_to_save": ["q_proj"]}, "twice", "one of the two"),
    ("llama", {**QV, "exclude_modules": ["q_proj", "v_proj"]}, "refused", "No modules were targeted"),
    ("llama", {**QV, "target_module": ["k_proj"]}, "unknown-field", "target_modules"),
    ("gpt2", {"target_modules": ["c_attn"], "alpha_pattern": {"c_atn": 3}}, "pattern-no-match", "c_attn"),
    ("llama", {**QV, "lora_dropout": 5}, "value", "no probability"),
    ("llama", {**QV, "r": "16"}, "value", "whole number"),
    ("llama", {**QV, "bias": "lora"}, "value", "lora_only"),
    ("llama", {**QV, "init_lora_weights": "pisa"}, "value", "instead: pissa"),
    ("llama", {**QV, "task_type": "CAUSAL"}, "value", "CAUSAL_LM"),
    ("llama", {**QV, "init_lora_weights": "orthogonal", "r": 3}, "value", "instead: 4"),
    ("llama", {**QV, "use_dora": True, "lora_bias": True}, "refused", "not supported for DoRA"),
    (
        "mixtral",
        {"target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"], "use_dora": True},
        "refused",
        "use_dora=True",
    ),
]

GOOD = [
    ("gpt2", {"target_modules": ["c_attn"]}),
    ("gpt2", {"target_modules": ["attn.c_proj", "mlp.c_proj"]}),
    ("gpt2", {"target_modules": "all-linear"}),
    ("gpt2", {"target_modules": ["c_fc"], "layers_to_transform": [0, 1]}),
    ("bert", {"target_modules": ["query", "key", "value"]}),
    ("bert", {"target_modules": ["attention.output.dense", "intermediate.dense"]}),
    ("distilbert", {"target_modules": ["q_lin", "v_lin", "lin1"]}),
    ("t5", {"target_modules": ["q", "v"]}),
    ("t5", {"target_modules": ["q", "k", "v", "o", "wi", "wo"]}),
    ("bart", {"target_modules": ["q_proj", "v_proj", "fc1", "fc2"]}),
    ("llama", QV),
    ("llama", {"target_modules": "all-linear", "use_rslora": True}),
    ("llama", {"target_modules": r".*self_attn\.(q|k|v|o)_proj"}),
    ("llama", {**QV, "rank_pattern": {"q_proj": 8}, "alpha_pattern": {"q_proj": 16}}),
    ("llama", {**QV, "modules_to_save": ["embed_tokens", "lm_head", "norm"]}),
    ("llama", {**QV, "use_dora": True, "init_lora_weights": "pissa", "lora_dropout": 0.05, "bias": "none"}),
    ("mixtral", {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}),
    (
        "mixtral",
        {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
    ("gpt_neox", {"target_modules": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]}),
    ("falcon", {"target_modules": ["query_key_value", "dense"]}),
    ("opt", {"target_modules": ["q_proj", "v_proj", "out_proj", "fc1", "fc2"]}),
    ("gemma3", {"target_modules": r".*language_model\..*\.(q_proj|v_proj)"}),
    (
        "qwen3",
        {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]},
    ),
    # a second set
    ("gptj", {"target_modules": ["q_proj", "k_proj", "v_proj", "out_proj"]}),
    ("mistral", {**QV, "lora_dropout": 0.1, "bias": "lora_only", "task_type": "CAUSAL_LM"}),
    ("phi", {"target_modules": ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]}),
    ("gemma2", {"target_modules": ["o_proj"], "layers_to_transform": [0], "layers_pattern": "layers"}),
    ("roberta", {"target_modules": ["query"], "modules_to_save": ["classifier"], "task_type": "SEQ_CLS"}),
    ("qwen2_moe", {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}),
    ("gpt_oss", {**QV, "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}),
    (
        "deepseek_v3",
        {"target_modules": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]},
    ),
    ("llama", {"target_modules": "all-linear", "exclude_modules": ["lm_head"]}),
    ("llama", {"target_modules": ["model.layers.0.self_attn.q_proj"], "init_lora_weights": "olora"}),
    ("llama", {**QV, "use_dora": True, "use_rslora": True, "rank_pattern": {"self_attn.v_proj": 2}}),
    ("llama", {**QV, "init_lora_weights": "pissa_niter_4", "r": 3}),
    ("llama", {**QV, "init_lora_weights": "orthogonal", "r": 4}),
    ("gpt_bigcode", {"target_modules": ["c_attn"]}),
]


@pytest.mark.parametrize(("model_type", "fields", "rule", "says"), BAD)
def test_the_fault_is_found(model_type, fields, rule, says):
    report = found(model_type, fields)
    assert rule in {finding.rule for finding in report.findings}, str(report)
    texts = [f"{f.given}: {f.found} instead: {f.instead}" for f in report.findings if f.rule == rule]
    assert any(says in text for text in texts), texts


@pytest.mark.parametrize(("model_type", "fields"), GOOD)
def test_no_false_alarm(model_type, fields):
    report = found(model_type, fields)
    assert report.findings == (), str(report)
    assert report.adapted > 0


def test_there_are_as_many_as_are_promised():
    assert len(BAD) >= 40
    assert len(GOOD) >= 20


NAMED = [(t, f) for t, f, rule, _ in BAD if rule in ("no-match", "collision") and "target_modules" in f]


@pytest.mark.parametrize(("model_type", "fields"), NAMED)
def test_what_it_says_to_write_instead_works(model_type, fields):
    """Each suggestion is typed in: PEFT then adapts something, and the same fault is gone."""
    for finding in found(model_type, fields).findings:
        if finding.where != "target_modules" or finding.rule not in ("no-match", "collision"):
            continue
        for text in finding.instead.split(" or "):
            text = re.sub(r" \([\w.]+\)$", "", text)
            if text.startswith("target_parameters: "):
                fields = {"target_parameters": json.loads(text.removeprefix("target_parameters: "))}
            elif text.startswith("["):
                fields = {"target_modules": json.loads(text.removesuffix(", a list"))}
            elif text.startswith('"') or "*" in text:
                fields = {"target_modules": text.strip('"')}
            else:
                fields = {"target_modules": [text]}
            again = found(model_type, fields)
            assert again.adapted > 0, (text, str(again))
            assert finding.rule not in {f.rule for f in again.findings}, (text, str(again))


def test_what_to_exclude_leaves_the_language_model():
    model_type = "gemma3"
    report = found(model_type, {"target_modules": "all-linear"})
    excluded = re.search(r'exclude_modules: "(.*)"', report.findings[0].instead)[1]
    again = found(model_type, {"target_modules": "all-linear", "exclude_modules": excluded})
    assert again.findings == ()
    assert 0 < again.adapted < report.adapted


def test_files_are_read_and_refused(tmp_path):
    (tmp_path / "c.yaml").write_text("r: 8\ntarget_modules: [q_proj]\n")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    assert read_lora_config(tmp_path / "c.yaml")[0] == {"r": 8, "target_modules": ["q_proj"]}
    assert read_lora_config(tmp_path)[0]["r"] == 2
    for name, text, says in (
        ("a.json", "[1]", "no table"),
        ("b.json", "{", "not readable"),
        ("d.json", '{"peft_type": "VERA"}', "VERA"),
        ("e.yaml", "a: [", "no YAML"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ModelError, match=says):
            read_lora_config(tmp_path / name)
    with pytest.raises(ModelError, match="No such file"):
        read_lora_config(tmp_path / "nothing.json")


def test_aliases_that_stand_for_too_much_are_a_sentence(tmp_path):
    """Ten lines of nine aliases each stand for 3,486,784,401 values, and nobody waits for them."""
    letters = "abcdefghij"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in pairwise(letters)]
    path = tmp_path / "config.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(ModelError, match="aliases that stand for"):
        read_lora_config(path)
    path.write_text("a: &a\n  b: *a\n")
    with pytest.raises(ModelError, match="stands for itself"):
        read_lora_config(path)
