"""Adapters as PEFT alone makes them: every option of LoRA, every other kind, and what people get wrong."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from tests.adapters.architectures import config as config_of_type
from tests.adapters.architectures import model as tiny_of_type
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from loratlas.models.quiet import quiet

KINDS = {
    "causal": AutoModelForCausalLM,
    "seq2seq": AutoModelForSeq2SeqLM,
    "classes": AutoModelForSequenceClassification,
    "tokens": AutoModelForTokenClassification,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One adapter.

    Args:
        name: of the case.
        base: of `BASES`.
        kind: of `KINDS`.
        config: of PEFT, as keyword arguments of LoraConfig, or an instance of another one.
        options: of the base.
        edit: fields of ``adapter_config.json`` that are changed afterwards; None removes one.
        refused: what the sentence must say; None where the adapter must be right.
        refused_merged: the same for a merged model alone.
        make: puts something else on the base than get_peft_model does.
        stored: type of the tensors on disk.
        dropped: tensors that are left out of the file: those with this in their name.
    """

    name: str
    base: str = "llama"
    kind: str = "causal"
    config: Any = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    edit: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None
    refused_merged: str | None = None
    make: Callable[[Any], None] | None = None
    stored: torch.dtype = torch.float32
    dropped: str | None = None


def _grow(model: Any) -> None:
    model.resize_token_embeddings(103, mean_resizing=False)


QV = {"target_modules": ["q_proj", "v_proj"]}
HEAD = {"target_modules": ["q_proj", "lm_head"]}
LORA = {"r": 4, "lora_alpha": 8, **QV}
CONV = {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
CLS = {"task_type": "SEQ_CLS", "r": 4, "lora_alpha": 8}
THREE = {"num_labels": 3}


def _case(name: str, more: dict[str, Any] | None = None, **fields: Any) -> Case:
    return Case(name=name, config={**LORA, **(more or {})}, **fields)


CASES = (
    _case("plain"),
    _case("rslora", {"use_rslora": True}),
    _case("dora", {"use_dora": True}),
    _case("dora rslora", {"use_dora": True, "use_rslora": True}),
    _case("dora conv1d", {**CONV, "use_dora": True}, base="gpt2"),
    _case("dropout", {"lora_dropout": 0.1}),
    _case("all linear", {"target_modules": "all-linear"}),
    _case("expression", {"target_modules": r".*layers\.1\.self_attn\.(q|k)_proj"}),
    _case("layers to transform", {"layers_to_transform": [1], "layers_pattern": "layers"}),
    _case("exclude modules", {"exclude_modules": r".*layers\.0.*"}),
    _case("rank pattern", {"rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.v_proj": 6}}),
    _case("alpha pattern", {"alpha_pattern": {"v_proj": 3}, "use_rslora": True}),
    _case("fan in fan out", CONV, base="gpt2"),
    _case("conv1d without fan in fan out", {**CONV, "fan_in_fan_out": False}, base="gpt2"),
    _case("lora bias", {**CONV, "lora_bias": True}, base="gpt2"),
    _case("lora bias on a base without", {"lora_bias": True}, refused_merged="bias"),
    _case("bias all", {**CONV, "bias": "all"}, base="gpt2"),
    _case("bias lora only", {**CONV, "bias": "lora_only"}, base="gpt2"),
    _case("head saved", {"modules_to_save": ["lm_head"]}),
    _case("embedding saved", {"modules_to_save": ["embed_tokens"]}),
    _case("both ends saved", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    _case("norms saved", {"modules_to_save": ["input_layernorm", "norm"]}),
    _case("embedding adapted", {"target_modules": ["q_proj", "embed_tokens"]}),
    _case("head adapted", HEAD),
    _case("tied head adapted", HEAD, base="tied"),
    _case("tied embedding adapted", {"target_modules": ["q_proj", "embed_tokens"]}, base="tied"),
    _case("tied ends adapted", {"target_modules": ["embed_tokens", "lm_head"]}, base="tied"),
    _case(
        "tied ends adapted alike",
        {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
        base="tied",
    ),
    _case("tied head saved", {"modules_to_save": ["lm_head"]}, base="tied"),
    _case("tied embedding saved", {"modules_to_save": ["embed_tokens"]}, base="tied"),
    _case(
        "tied embedding saved alike",
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        base="tied",
    ),
    _case("tokens trained", {"trainable_token_indices": [3, 5]}),
    _case("tokens trained, tied", {"trainable_token_indices": [3, 5]}, base="tied"),
    _case("tokens added", make=_grow, refused="tokens were added"),
    _case(
        "experts",
        {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
        base="mixtral",
    ),
    _case("init false", {"init_lora_weights": False}),
    _case("init gaussian", {"init_lora_weights": "gaussian"}),
    _case("init orthogonal", {"init_lora_weights": "orthogonal"}),
    _case("init eva", edit={"init_lora_weights": "eva", "eva_config": {"rho": 2.0}}),
    _case("init mica", {"init_lora_weights": "mica"}),
    _case("init pissa", {"init_lora_weights": "pissa"}),
    _case(
        "init pissa rslora", {"init_lora_weights": "pissa", "use_rslora": True, "rank_pattern": {"q_proj": 2}}
    ),
    _case("init pissa dora", {"init_lora_weights": "pissa", "use_dora": True}),
    _case("init pissa conv1d", {**CONV, "init_lora_weights": "pissa"}, base="gpt2"),
    _case("init olora", {"init_lora_weights": "olora"}),
    _case("init pissa, bfloat16", {"init_lora_weights": "pissa"}, stored=torch.bfloat16),
    _case("init pissa, head", {"init_lora_weights": "pissa", **HEAD}),
    _case(
        "init pissa, head, without what is left of it",
        {"init_lora_weights": "pissa", **HEAD},
        dropped="base_layer",
    ),
    _case(
        "init pissa, tied head",
        {"init_lora_weights": "pissa", **HEAD},
        base="tied",
    ),
    _case(
        "init olora, tied head",
        {"init_lora_weights": "olora", **HEAD},
        base="tied",
    ),
    _case(
        "init pissa, tied head, without what is left of it",
        {"init_lora_weights": "pissa", **HEAD},
        base="tied",
        dropped="base_layer",
        refused="tied to another matrix",
    ),
    _case("method in small letters", edit={"peft_type": "lora"}, refused="peft_type 'lora'"),
    _case("init pissa niter", {"init_lora_weights": "pissa_niter_4"}, refused="random generator"),
    _case(
        "init loftq",
        edit={"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}},
        refused="rounding",
    ),
    _case("init corda", edit={"init_lora_weights": "corda"}, refused="covariances"),
    _case("init lora ga", edit={"init_lora_weights": "lora_ga"}, refused="gradients"),
    _case("init unknown", edit={"init_lora_weights": "magic"}, refused="unknown initialisation"),
    _case("activated lora", {"alora_invocation_tokens": [5, 6]}, refused="alora_invocation_tokens"),
    _case("qalora", edit={"use_qalora": True}, refused="use_qalora"),
    _case("layers replicated", {"layer_replication": [[0, 2], [1, 2]]}, refused="layer_replication"),
    _case("arrow", edit={"arrow_config": {"top_k": 2}}, refused="arrow_config"),
    _case("block diagonal", edit={"use_bdlora": {"nblocks": 2}}, refused="use_bdlora"),
    _case("velora", edit={"velora_config": {"num_groups": 2}}, refused="velora_config"),
    _case("kasa", edit={"kasa_config": {"beta": 0.1}}, refused="kasa_config"),
    _case("monte carlo", edit={"monteclora_config": {"num_samples": 2}}, refused="monteclora_config"),
    _case("megatron", edit={"megatron_config": {"a": 1}}, refused="megatron_config"),
    _case("option of a later PEFT, set", edit={"use_hyper": True}, refused="use_hyper"),
    _case("option of a later PEFT, not set", edit={"use_hyper": None}),
    _case("no task type", edit={"task_type": None}),
    _case("wrong task type: classes", edit={"task_type": "SEQ_CLS"}, refused="no head"),
    _case("wrong task type: target", edit={"task_type": "SEQ_2_SEQ_LM"}),
    _case("narrowed targets", edit={"target_modules": ["q_proj"]}, refused="no use for"),
    _case("widened targets", edit={"target_modules": ["q_proj", "v_proj", "k_proj"]}, refused="missing"),
    _case("another rank", edit={"r": 8}, refused="rank 8"),
    _case("a rank of a million", edit={"r": 1_000_000}, refused="rank 1000000"),
    Case(name="sequence classes, decoder", kind="classes", config={**CLS, **QV}, options=THREE),
    Case(
        name="sequence classes, wrong task type",
        kind="classes",
        config={**CLS, **QV},
        options=THREE,
        edit={"task_type": "CAUSAL_LM", "modules_to_save": ["score"]},
    ),
    Case(
        name="sequence classes, encoder with its pooler",
        base="bert classes",
        kind="classes",
        config={**CLS, "target_modules": ["query", "value"]},
        options=THREE,
    ),
    Case(
        name="sequence classes, pooler saved too",
        base="bert",
        kind="classes",
        config={**CLS, "target_modules": ["query"], "modules_to_save": ["classifier", "pooler"]},
        options=THREE,
    ),
    Case(
        name="sequence classes, pooler held by nobody",
        base="bert",
        kind="classes",
        config={**CLS, "target_modules": ["query", "value"]},
        options=THREE,
        refused="pooler",
    ),
    Case(
        name="sequence classes, head of two layers",
        base="distilbert",
        kind="classes",
        config={**CLS, "target_modules": ["q_lin"]},
        options=THREE,
    ),
    Case(
        name="sequence classes, regression",
        kind="classes",
        config={**CLS, **QV},
        options={"num_labels": 1},
        refused="regression",
    ),
    Case(
        name="token classes",
        base="bert",
        kind="tokens",
        config={**CLS, "task_type": "TOKEN_CLS", "target_modules": ["query"]},
        options=THREE,
        refused="TOKEN_CLS",
    ),
    Case(
        name="features",
        base="bert",
        kind="classes",
        config={**CLS, "task_type": "FEATURE_EXTRACTION", "target_modules": ["query"]},
        refused="FEATURE_EXTRACTION",
    ),
    Case(
        name="targets",
        base="t5",
        kind="seq2seq",
        config={"task_type": "SEQ_2_SEQ_LM", "r": 4, "target_modules": ["q", "v"]},
    ),
    Case(
        name="targets, wrong task type",
        base="t5",
        kind="seq2seq",
        config={"task_type": "SEQ_2_SEQ_LM", "r": 4, "target_modules": ["q", "v"]},
        edit={"task_type": "CAUSAL_LM"},
    ),
    Case(name="prompt tuning", config=PromptTuningConfig(num_virtual_tokens=4), refused="prompt tuning"),
    Case(name="prefix tuning", config=PrefixTuningConfig(num_virtual_tokens=4), refused="prefix tuning"),
    Case(
        name="ia3",
        config=IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        refused="IA³",
    ),
    Case(name="loha", config=LoHaConfig(**QV), refused="LoHa"),
    Case(name="lokr", config=LoKrConfig(**QV), refused="LoKr"),
    Case(name="oft", config=OFTConfig(r=0, oft_block_size=4, **QV), refused="OFT"),
    Case(name="boft", config=BOFTConfig(boft_block_size=4, **QV), refused="BOFT"),
    Case(name="vera", config=VeraConfig(r=4, **QV), refused="VeRA"),
    Case(name="adalora", config=AdaLoraConfig(total_step=10, init_r=4, target_r=2, **QV), refused="AdaLoRA"),
    Case(name="norms", config=LNTuningConfig(target_modules=["input_layernorm"]), refused="tuning of norms"),
)


def save_bases(folder: Path) -> dict[str, Path]:
    """Tiny bases on disk, by the names that cases use."""
    names = ("llama", "gpt2", "mixtral", "bert", "distilbert", "t5")
    made: dict[str, Any] = {name: tiny_of_type(name) for name in names}
    torch.manual_seed(5)
    classes = config_of_type("bert")
    classes.num_labels = 3
    tied = config_of_type("llama")
    tied.tie_word_embeddings = True
    made["tied"] = AutoModelForCausalLM.from_config(tied)
    made["bert classes"] = AutoModelForSequenceClassification.from_config(classes)
    for name, model in made.items():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        with quiet():
            model.save_pretrained(folder / name)
    return {name: folder / name for name in made}


def save_case(case: Case, base: Path, folder: Path) -> Path:
    """The adapter of a case as PEFT saves it, its numbers random."""
    torch.manual_seed(3)
    with quiet():
        model = KINDS[case.kind].from_pretrained(base, dtype=torch.float32, **case.options)
    if case.make is not None:
        case.make(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = case.config
        if isinstance(config, dict):
            config = LoraConfig(**{"task_type": "CAUSAL_LM", **config})
        config.task_type = config.task_type or "CAUSAL_LM"
        adapted = get_peft_model(model, config)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        adapted.save_pretrained(folder)
    weights = folder / "adapter_model.safetensors"
    if case.dropped is not None or case.stored != torch.float32:
        tensors = {
            name: tensor.to(case.stored)
            for name, tensor in load_file(weights).items()
            if case.dropped is None or case.dropped not in name
        }
        save_file(tensors, weights, metadata={"format": "pt"})
    path = folder / "adapter_config.json"
    written = json.loads(path.read_text())
    written |= {"base_model_name_or_path": str(base), **case.edit}
    path.write_text(json.dumps(written))
    return folder
