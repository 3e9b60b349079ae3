"""Finding, building and loading models; and what is said when that fails."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig

from loratlas.anatomy.read import read
from loratlas.demo import base_path
from loratlas.errors import ModelError, RunError
from loratlas.models.config import load_config
from loratlas.models.load import load_model
from loratlas.models.meta import meta_model


def test_a_config_is_found_as_directory_file_and_object(tmp_path, small):
    config = small("gpt2")
    config.save_pretrained(tmp_path)
    for source in (tmp_path, str(tmp_path), tmp_path / "config.json", config):
        assert load_config(source).to_dict()["n_embd"] == 48


def test_the_digest_names_architecture_and_sizes_only(tmp_path, small):
    config = small("llama", attention_dropout=0.1)
    config.save_pretrained(tmp_path)
    digest = read(config).config_digest
    assert len(digest) == 16
    assert read(tmp_path).config_digest == digest
    assert read(tmp_path / "config.json").config_digest == digest
    assert read(small("llama", use_cache=False, dtype="bfloat16")).config_digest == digest
    assert read(small("llama", intermediate_size=84)).config_digest != digest
    assert (
        read(small("llama", rope_parameters={"rope_type": "default", "rope_theta": 5.0})).config_digest
        != digest
    )


def test_the_digest_is_the_same_in_another_process(small, tmp_path):
    small("mpt").save_pretrained(tmp_path)
    code = f"from loratlas.anatomy.read import read; print(read({str(tmp_path)!r}).config_digest)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Nothing else on standard output: it belongs to --json.
    assert other.stdout == read(tmp_path).config_digest + "\n"


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda d: d / "nowhere" / "here", "no such file or directory"),
        (lambda d: d, "a directory without a config.json"),
        (lambda d: "loratlas-tests/no-such-model", "the Hub"),
        (lambda d: "", "no model"),
    ],
)
def test_a_model_that_is_not_there(make, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_config(make(tmp_path))
    assert found in caught.value.found
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{", "not readable as JSON"),
        ("[]", "without a model_type"),
        ('{"hidden_size": 3}', "without a model_type"),
        ('{"model_type": "no_such_type"}', "refuses"),
    ],
)
def test_a_config_that_is_none(text, found, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError) as caught:
        read(tmp_path)
    assert found in caught.value.found


def test_sizes_that_do_not_fit_together_are_an_error(small):
    with pytest.raises(ModelError) as caught:
        meta_model(small("gpt2", n_head=5))
    assert "cannot build" in caught.value.found


def test_a_type_without_a_text_model_is_an_error():
    from transformers import ViTMAEConfig

    with pytest.raises(ModelError) as caught:
        read(ViTMAEConfig())
    assert caught.value.instead


def test_something_else_than_a_model_is_an_error():
    with pytest.raises(ModelError) as caught:
        read(torch.nn.Linear(2, 2))
    assert "Linear" in caught.value.given


def test_gemma3_with_a_vision_tower_is_read_whole_and_its_towers_lie_outside_the_text(small):
    from transformers import Gemma3Config

    text = small("gemma3_text")
    anatomy = read(Gemma3Config(text_config=text.to_dict()))
    assert anatomy.unresolved == ()
    assert {site.scope for site in anatomy} == {"vision", "connector", "decoder"}
    mine = [site for site in anatomy if site.scope == "decoder"]
    assert [(site.role, site.shape) for site in mine] == [(site.role, site.shape) for site in read(text)]
    assert all(site.path.startswith(("model.language_model.", "lm_head.")) for site in mine)


class _Memory(TorchDispatchMode):
    """Count the bytes of all results that are not on the meta device."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, torch.Tensor) and value.device.type != "meta":
                self.bytes += value.numel() * value.element_size()
        return result


def test_a_70b_model_is_read_without_memory():
    config = LlamaConfig(
        num_hidden_layers=80,
        hidden_size=8192,
        num_attention_heads=64,
        num_key_value_heads=8,
        intermediate_size=28672,
        vocab_size=128256,
    )
    with _Memory() as memory:
        anatomy = read(config)
    assert anatomy.parameters == 70_553_706_496
    assert len(anatomy.sites) == 80 * 7 + 2
    assert anatomy.unresolved == ()
    assert memory.bytes < 1_000_000
    assert all(value.device.type == "meta" for value in meta_model(config).parameters())


def test_dialogpt_medium_counts_as_its_card_says(shared):
    anatomy = read(shared("models/dialogpt-medium-config"))
    assert anatomy.parameters == 354_823_168
    blocks = [site for site in anatomy if site.family in ("attn", "ffn")]
    assert sum(site.lora_parameters(16) for site in blocks) == 6_291_456
    assert sum(site.lora_parameters(16) for site in blocks if site.family == "attn") == 2_359_296
    assert sum(site.lora_parameters(8) for site in blocks if site.family == "ffn") == 1_966_080


def test_a_live_model_and_a_peft_model_read_like_their_config(small):
    from peft import LoraConfig, get_peft_model

    config = small("qwen2")
    wanted = read(config).sites
    model = AutoModelForCausalLM.from_config(config)
    assert read(model).sites == wanted
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "down_proj"]))
    assert read(adapted).sites == wanted


def test_a_model_with_parts_removed_is_an_error(small):
    model = AutoModelForCausalLM.from_config(small("llama"))
    del model.model.layers[2]
    with pytest.raises(ModelError) as caught:
        read(model)
    assert "model.layers.2" in caught.value.found


@pytest.fixture
def saved(tmp_path, small):
    """A small GPT-2 with dropout, as a directory."""
    torch.manual_seed(0)
    config = small("gpt2", resid_pdrop=0.2, embd_pdrop=0.3, attn_pdrop=0.4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    return tmp_path


def test_a_loaded_model_is_frozen_in_eval_mode_without_dropout(saved):
    model = load_model(saved, dtype="float32")
    assert not model.training
    assert not any(value.requires_grad for value in model.parameters())
    assert model.config.use_cache is False
    rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.0}
    kept = load_model(saved, base_dropout=True)
    assert {m.p for m in kept.modules() if isinstance(m, torch.nn.Dropout)} == {0.2, 0.3, 0.4}


def test_a_loaded_model_has_the_weights_and_the_type_asked_for(saved):
    wanted = AutoModelForCausalLM.from_pretrained(saved)
    for dtype in ("float32", "bfloat16"):
        model = load_model(saved, dtype=dtype)
        assert model.dtype == getattr(torch, dtype)
        for mine, theirs in zip(model.parameters(), wanted.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs.to(mine.dtype))


def test_loading_prints_nothing(saved, capfd):
    load_model(saved)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_types_without_the_wanted_attention_fall_back_to_their_own(tmp_path, small):
    AutoModelForCausalLM.from_config(small("gptj")).save_pretrained(tmp_path)
    assert load_model(tmp_path, attn="sdpa").config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("options", "given"),
    [({"dtype": "float16"}, "float16"), ({"quantize": "3bit"}, "3bit")],
)
def test_options_that_do_not_exist(options, given, saved):
    with pytest.raises(ModelError) as caught:
        load_model(saved, **options)
    assert given in caught.value.given


def test_quantising_without_bitsandbytes_names_the_extra(saved, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else real(name)
    )
    with pytest.raises(ModelError) as caught:
        load_model(saved, quantize="4bit")
    assert "loratlas[quantize]" in caught.value.instead


def test_a_config_without_weights_is_an_error(tmp_path, small):
    small("gpt2").save_pretrained(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path)
    assert "no weights" in caught.value.found


def test_broken_weights_are_an_error(saved):
    (saved / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError) as caught:
        load_model(saved)
    assert "no weights" in caught.value.found


def test_missing_weights_are_an_error_and_not_random_numbers(saved):
    from safetensors.torch import load_file, save_file

    weights = load_file(saved / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError) as caught:
        load_model(saved)
    assert "transformer.h.1.mlp.c_fc.weight" in caught.value.found


def test_the_map_survives_json(small):
    from loratlas.anatomy.sites import Anatomy

    anatomy = read(small("phi3"))
    assert Anatomy.from_json(json.loads(json.dumps(anatomy.to_json()))) == anatomy
    with pytest.raises(ModelError):
        Anatomy.from_json({"schema": "loratlas.plan", "version": 1})


def test_an_unknown_site_names_the_nearest(small):
    with pytest.raises(ModelError) as caught:
        read(small("llama")).site("model.layers.0.self_attn.q_prj.weight")
    assert "model.layers.0.self_attn.q_proj.weight" in caught.value.instead


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=["python", "torch"],
)
def test_too_little_memory_is_not_called_broken_weights(monkeypatch: pytest.MonkeyPatch, error: Exception):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("loratlas.models.load._from_pretrained", fail)
    with pytest.raises(RunError) as caught:
        load_model(base_path())
    assert "memory" in caught.value.found
    assert "weights that load" not in str(caught.value)
