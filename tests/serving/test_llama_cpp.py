"""Adapters and bases written as GGUF, run by llama.cpp and held against transformers and PEFT.

The engine keeps keys and values in 16 bits, so that its numbers differ from transformers' in the fourth decimal on
these bases. What counts is that the adapter adds nothing to that, and that it changes the answer at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.adapters.architectures import model as tiny_of_type
from tests.serving.byte_tokenizer import tiny_tokenizer
from tests.serving.llama_cpp_engine import llama_cpp, log_probabilities
from tests.tiny import TYPES, tiny_model

from loratlas.adapters.peft_check import expected_warnings
from loratlas.errors import ModelError
from loratlas.models.quiet import quiet
from loratlas.serving.engine_export import write_for_engine
from loratlas.serving.gguf_files.gguf_names import GGUF_TYPES
from loratlas.serving.gguf_files.write_gguf_model import write_gguf_model

TOLERANCE = 0.02
"""Nats beyond the base's own difference; the issue's bound. What is seen here is a tenth of it."""


def base_of_type(model_type: str) -> Any:
    if model_type in TYPES:
        return tiny_model(model_type)
    model = tiny_of_type(model_type).float().eval()
    if model_type == "qwen3_moe":
        # llama.cpp always normalises the weights of the experts that are taken.
        model.config.norm_topk_prob = True
        model = type(model)(model.config).float().eval()
    return model


def adapted(model: Any, folder: Path, **options: Any) -> Any:
    """A PEFT adapter on every linear module, ranks mixed, saved; numbers large enough to be seen."""
    torch.manual_seed(1)
    linear = ("Linear", "Conv1D")
    names = [
        n for n, m in model.named_modules() if type(m).__name__ in linear and not n.startswith("lm_head")
    ]
    experts = any(n.endswith("experts.down_proj") for n, _ in model.named_parameters())
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=7,
        target_modules=names,
        rank_pattern={names[0].rpartition(".")[2]: 2},
        fan_in_fan_out=model.config.model_type == "gpt2",
        target_parameters=["experts.gate_up_proj", "experts.down_proj"] if experts else None,
        **options,
    )
    with expected_warnings():
        peft = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    peft.save_pretrained(folder)
    return peft.eval()


def tokens_for(model: Any) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    return [1, *torch.randint(3, model.config.vocab_size, (20,), generator=generator).tolist()]


def of_transformers(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens])).logits[0, -1].float().log_softmax(-1)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}], ids=["lora", "rslora"])
@pytest.mark.parametrize("model_type", GGUF_TYPES)
def test_llama_cpp_computes_what_peft_computes(tmp_path, model_type, options):
    llama_cpp()
    model = base_of_type(model_type)
    tokens, size = tokens_for(model), model.config.vocab_size
    with quiet():
        model.save_pretrained(tmp_path / "base")
    write_gguf_model(model, tiny_tokenizer(size), tmp_path / "base.gguf", dtype="float32")
    alone = of_transformers(model, tokens)
    engine_alone = log_probabilities(tmp_path / "base.gguf", tokens, size)
    own = float((engine_alone - alone).abs().max())
    assert own < TOLERANCE
    together = of_transformers(adapted(model, tmp_path / "adapter", **options), tokens)
    write_for_engine(tmp_path / "adapter", tmp_path / "out", engine="llama.cpp", base=tmp_path / "base")
    served = log_probabilities(tmp_path / "base.gguf", tokens, size, tmp_path / "out" / "adapter.gguf")
    assert float((served - together).abs().max()) <= own + TOLERANCE / 4
    assert float((served - engine_alone).abs().max()) > 2 * TOLERANCE


def test_a_merged_model_in_float16_answers_like_peft(tmp_path):
    llama_cpp()
    from loratlas.serving.gguf_files.gguf_export import export_gguf

    model = base_of_type("llama")
    tokens, size = tokens_for(model), model.config.vocab_size
    with quiet():
        model.save_pretrained(tmp_path / "base")
    tiny_tokenizer(size).save_pretrained(tmp_path / "base")
    together = of_transformers(adapted(model, tmp_path / "adapter"), tokens)
    done = export_gguf(tmp_path / "adapter", tmp_path / "out", base=tmp_path / "base")
    assert 0 < done.check < 1e-3
    served = log_probabilities(tmp_path / "out" / "model.gguf", tokens, size)
    assert float((served - together).abs().max()) < TOLERANCE


def test_the_demo_base_and_its_tokenizer(tmp_path):
    """The embedded base: a trained model, its own tokenizer, an adapter as loratlas would write it."""
    llama_cpp()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from loratlas.demo import base_path

    source = str(base_path("demo:llama-mini"))
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(source)
    write_gguf_model(model, tokenizer, tmp_path / "base.gguf", dtype="float16")
    tokens, size = tokenizer("Once upon a time")["input_ids"], model.config.vocab_size
    alone = of_transformers(model, tokens)
    engine_alone = log_probabilities(tmp_path / "base.gguf", tokens, size)
    likely = alone > -12  # what a sampler could ever draw
    own = float((engine_alone - alone)[likely].abs().max())
    adapted(model, tmp_path / "adapter")
    with quiet(), expected_warnings():
        fresh = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        together = of_transformers(PeftModel.from_pretrained(fresh, str(tmp_path / "adapter")), tokens)
    write_for_engine(tmp_path / "adapter", tmp_path / "out", engine="llama.cpp", base=source)
    served = log_probabilities(tmp_path / "base.gguf", tokens, size, tmp_path / "out" / "adapter.gguf")
    assert float((served - together)[together > -12].abs().max()) <= own + TOLERANCE
    assert float((served - engine_alone).abs().max()) > 2 * TOLERANCE


def test_what_llama_cpp_does_otherwise_is_refused(tmp_path):
    model = tiny_model("llama")
    model.config.hidden_act = "gelu"
    with pytest.raises(ModelError, match="activation gelu"):
        write_gguf_model(model, tiny_tokenizer(96), tmp_path / "a.gguf")
    model = tiny_model("gemma2")
    model.config.query_pre_attn_scalar = 99
    with pytest.raises(ModelError, match="query_pre_attn_scalar 99"):
        write_gguf_model(model, tiny_tokenizer(96), tmp_path / "a.gguf")
    with pytest.raises(ModelError, match="'falcon'"):
        write_gguf_model(tiny_model("falcon"), tiny_tokenizer(96), tmp_path / "a.gguf")


def test_a_tokenizer_without_a_name_in_llama_cpp_is_refused(tmp_path):
    from tokenizers import pre_tokenizers

    tokenizer = tiny_tokenizer(96)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ModelError, match="cuts text by Whitespace"):
        write_gguf_model(tiny_model("llama"), tokenizer, tmp_path / "a.gguf")


def test_check_asks_a_running_llama_cpp(tmp_path):
    """`check --url` against the real server: the adapter as it was written, and one of another scale."""
    from loratlas.adapters.stored.adapter_files import save_adapter
    from loratlas.api.check_adapter import check
    from loratlas.data.encode import load_tokenizer
    from loratlas.demo import base_path
    from loratlas.models.load import load_model
    from loratlas.placement.plan import place

    engine, source = llama_cpp(), str(base_path("demo:llama-mini"))
    model = load_model(source, dtype="float32")
    write_gguf_model(model, load_tokenizer(source), tmp_path / "base.gguf", dtype="float32")
    tuned = place(source, "q,v,ffn.down:2").attach(model, seed=1)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(len(name)))
    adapter = save_adapter(tuned, tmp_path / "adapter")
    write_for_engine(adapter, tmp_path / "out", engine="llama.cpp", base=source)
    params = engine.CommonParams()
    params.model.path = str(tmp_path / "base.gguf")
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 256, 1, 0
    params.warmup, params.verbosity, params.hostnames, params.port = False, 0, ["127.0.0.1"], 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.lora_adapters = [engine.CommonAdapterLoraInfo(str(tmp_path / "out" / "adapter.gguf"), 1.0)]
    server = engine.Server(params)
    asked = check(adapter, ["llama.cpp"], base=source, url=server.listening_address).served
    assert asked is not None
    assert (asked["applied"], asked["right"]) == (True, True)
    assert asked["off"] <= asked["base_off"] + TOLERANCE
