"""Law 7: export → load → logits equal, merge ≡ forward; folders whole or not there."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
from tests.tiny import tiny_anatomy, tiny_model

from loratlas.adapters.export.export_adapter import export
from loratlas.adapters.stored.adapter_files import save_adapter
from loratlas.adapters.stored.load_adapter import load_adapter
from loratlas.adapters.stored.read_adapter import read_adapter
from loratlas.errors import AttachError, ModelError, OutputError, StorageError
from loratlas.files import whole_folder
from loratlas.placement.plan import place

TYPES = ("gpt2", "llama", "phi3", "opt", "falcon", "bloom")


def trained(model_type, text="attention@top/2:3 + feedforward:2", *, seed=0, **more):
    """An adapted model whose B is not zero, as after training."""
    import torch

    init = more.pop("init", True)
    plan = place(tiny_anatomy(model_type), text, **more)
    adapted = plan.attach(tiny_model(model_type), seed=seed, init=init)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return plan, adapted


def logits(model):
    import torch

    with torch.no_grad():
        return model(input_ids=torch.arange(3, 27)[None], use_cache=False).logits


@pytest.mark.parametrize("model_type", TYPES)
def test_saved_and_loaded_the_logits_are_equal(tmp_path, model_type):
    import torch

    plan, adapted = trained(model_type)
    wanted = logits(adapted)
    save_adapter(adapted, tmp_path / "a", plan_json=plan.to_json(), extra={"note": "x"})
    again = load_adapter(tiny_model(model_type), tmp_path / "a")
    assert torch.equal(logits(again), wanted)
    assert not torch.allclose(logits(tiny_model(model_type)), wanted, atol=1e-3)
    about = read_adapter(tmp_path / "a").notes
    assert about["plan"]["digest"] == plan.digest
    assert about["extra"] == {"note": "x"}


@pytest.mark.parametrize("model_type", TYPES)
def test_merged_is_forward(model_type):
    import torch

    _, adapted = trained(model_type)
    wanted = logits(adapted)
    torch.testing.assert_close(logits(adapted.merge_and_unload()), wanted, rtol=1e-4, atol=1e-4)


def test_peft_alone_loads_it_without_a_remark(tmp_path):
    import torch
    from peft import PeftModel

    _, adapted = trained("gpt2")
    save_adapter(adapted, tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=FutureWarning)
        again = PeftModel.from_pretrained(tiny_model("gpt2"), str(tmp_path / "a"))
    assert torch.equal(logits(again), logits(adapted))


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_that_took_from_its_base_is_saved_as_an_ordinary_one(tmp_path, init, rslora):
    import torch

    _, adapted = trained("llama", init=init, rslora=rslora)
    save_adapter(adapted, tmp_path / "a")
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert config["init_lora_weights"] is True
    assert (config["r"], set(config["rank_pattern"].values())) == (4, {6})
    torch.testing.assert_close(
        logits(load_adapter(tiny_model("llama"), tmp_path / "a")), logits(adapted), rtol=1e-4, atol=1e-4
    )


def test_loading_for_training_and_for_use(tmp_path):
    from loratlas.adapters.attach import trainable

    plan, adapted = trained("llama")
    save_adapter(adapted, tmp_path / "a")
    assert trainable(load_adapter(tiny_model("llama"), tmp_path / "a")) == 0
    assert trainable(load_adapter(tiny_model("llama"), tmp_path / "a", trainable=True)) == plan.trainable


@pytest.fixture
def base(tmp_path):
    """A saved tiny base with a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(96)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model = tiny_model("llama")
    model.config.use_cache = True
    model.save_pretrained(tmp_path / "base")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_export_of_both_kinds(tmp_path, base):
    import torch
    from transformers import AutoModelForCausalLM

    plan, adapted = trained("llama")
    wanted = logits(adapted)
    save_adapter(adapted, tmp_path / "a", plan_json=plan.to_json())
    plain = export(tmp_path / "a", tmp_path / "plain", target="peft", base=base)
    merged = export(tmp_path / "a", tmp_path / "merged", target="merged", base=base)
    assert (plain.path, plain.check) == (str(tmp_path / "plain"), 0.0)
    assert 0 <= merged.check < 1e-4
    assert read_adapter(tmp_path / "plain").notes["plan"] == plan.to_json()
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {
        p.name for p in (tmp_path / "merged").iterdir()
    }
    assert json.loads((tmp_path / "merged/config.json").read_text())["use_cache"] is True
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(alone.eval()), wanted, rtol=1e-4, atol=1e-4)
    # Rounding to bfloat16 is not hidden.
    assert (
        export(tmp_path / "a", tmp_path / "half", target="merged", base=base, dtype="bfloat16").check > 1e-4
    )


def test_export_refuses(tmp_path, base):
    _, adapted = trained("llama")
    save_adapter(adapted, tmp_path / "a")
    with pytest.raises(OutputError, match="gguf"):
        export(tmp_path / "a", tmp_path / "out", target="gguf", base=base)
    with pytest.raises(ModelError, match="base=MODEL"):
        export(tmp_path / "a", tmp_path / "out", target="peft")
    with pytest.raises(ModelError, match="adapter_config"):
        export(tmp_path, tmp_path / "out", target="peft", base=base)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/diary.txt").write_text("dear diary")
    with pytest.raises(OutputError, match="something else"):
        export(tmp_path / "a", tmp_path / "mine", target="peft", base=base)
    assert (tmp_path / "mine/diary.txt").read_text() == "dear diary"


def test_another_base_is_refused(tmp_path):
    _, adapted = trained("llama")
    save_adapter(adapted, tmp_path / "a")
    with pytest.raises(AttachError, match="digest"):
        load_adapter(tiny_model("llama", intermediate_size=64), tmp_path / "a")
    (tmp_path / "a/loratlas.json").unlink()
    with pytest.raises(ModelError, match="does not load"):
        load_adapter(tiny_model("llama", intermediate_size=64), tmp_path / "a")


def test_missing_weights_and_broken_notes_are_errors(tmp_path):
    from safetensors.torch import load_file, save_file

    _, adapted = trained("llama")
    folder = save_adapter(adapted, tmp_path / "a")
    weights = load_file(folder / "adapter_model.safetensors")
    weights.pop(next(iter(weights)))
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="missing"):
        load_adapter(tiny_model("llama"), folder)
    (folder / "loratlas.json").write_text("{")
    with pytest.raises(ModelError, match="not readable"):
        read_adapter(folder)


def test_a_folder_is_whole_or_not_there(tmp_path):
    import errno

    out = tmp_path / "out"

    def half(error):
        with whole_folder(out, marker="m") as new:
            (new / "half").write_text("x")
            raise error

    for error, kind in (
        (OSError(errno.ENOSPC, "No space left"), StorageError),
        (OSError(errno.EACCES, "no"), OutputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):
        with pytest.raises(kind):
            half(error)
    assert list(tmp_path.iterdir()) == []
    for text in ("one", "two"):
        with whole_folder(out, marker="m") as new:
            (new / "m").write_text(text)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (out / "m").read_text() == "two"
    shutil.rmtree(out)
    out.write_text("a file")
    with pytest.raises(OutputError), whole_folder(out, marker="m"):
        pass


def test_adapters_on_embedding_and_head_are_kept(tmp_path):
    import torch

    _, adapted = trained("llama", "embed:2 + head.lm:3 + q:2")
    save_adapter(adapted, tmp_path / "a")
    assert torch.equal(logits(load_adapter(tiny_model("llama"), tmp_path / "a")), logits(adapted))


def test_another_base_of_the_same_shape_is_noticed(tmp_path):
    """By numbers of its layers, whatever dtype it is loaded in and whatever stands in embeddings, heads and norms."""
    import torch

    _, adapted = trained("llama")
    save_adapter(adapted, tmp_path / "a")
    same = tiny_model("llama")
    with torch.no_grad():
        same.model.embed_tokens.weight.add_(1.0)
        same.model.norm.weight.add_(1.0)
    load_adapter(same.to(torch.bfloat16), tmp_path / "a")
    other = tiny_model("llama")
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    with pytest.raises(AttachError, match="other weights"):
        load_adapter(other, tmp_path / "a")
    assert not any("lora" in name for name, _ in other.named_parameters())
    shutil.copytree(tmp_path / "a", tmp_path / "on-purpose")
    (tmp_path / "on-purpose" / "loratlas.json").unlink()
    load_adapter(other, tmp_path / "on-purpose")


def test_a_base_that_its_adapter_changed_has_no_digest(tmp_path):
    _, adapted = trained("llama", init="pissa")
    save_adapter(adapted, tmp_path / "a")
    load_adapter(tiny_model("llama"), tmp_path / "a")
    assert read_adapter(tmp_path / "a").notes["base_weights"] is None
