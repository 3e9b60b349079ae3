"""A base in a GGUF file: its numbers, its name in every command, and files that are not what they seem."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.serving.byte_tokenizer import tiny_tokenizer
from tests.tiny import tiny_model

import loratlas
from loratlas.cli import run
from loratlas.errors import ModelError
from loratlas.files import cache_folder
from loratlas.models import gguf_base
from loratlas.models.config import load_config
from loratlas.models.gguf_base import gguf_note, readable
from loratlas.models.gguf_header import is_gguf, read_gguf_header
from loratlas.models.load import load_model
from loratlas.models.real_bases import REAL_BASES, bases_folder
from loratlas.serving.gguf_files.write_gguf_model import write_gguf_model

ROWS = [{"prompt": f"ab{n}=", "completion": "ba"} for n in range(8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request, folder):
    """A tiny model of a type, and the file that it was written to."""
    model = tiny_model(request.param, vocab_size=300)
    path = folder / f"{request.param}.gguf"
    write_gguf_model(model, tiny_tokenizer(300), path, dtype="float32")
    return model, path


@pytest.fixture(scope="module")
def llama(folder) -> Path:
    path = folder / "one-llama.gguf"
    write_gguf_model(tiny_model("llama", vocab_size=300), tiny_tokenizer(300), path, dtype="float32")
    return path


def test_a_file_has_the_numbers_that_were_written(base):
    model, path = base
    loaded = load_model(path, dtype="float32")
    own = model.state_dict()
    assert loaded.state_dict().keys() == own.keys()
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, own[name], rtol=0, atol=1e-6, msg=name)
    assert loaded.config.name_or_path == str(path)
    assert [site.path for site in loratlas.read(str(path))] == [site.path for site in loratlas.read(model)]
    assert "with its own numbers" in (gguf_note(path) or "")


def test_every_function_takes_the_file_and_keeps_its_name(base, tmp_path):
    _, path = base
    place = "attention:2"
    assert loratlas.place(str(path), place).model == str(path)
    trained = loratlas.train(
        str(path), ROWS, placement=place, steps=2, lr=0.01, max_length=32, out=tmp_path / "run"
    )
    config = json.loads((trained.adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(path)
    alone, adapted = (
        loratlas.evaluate(str(path), ROWS, adapter=adapter, dtype="float32", max_length=32)
        for adapter in (None, trained.adapter)
    )
    assert alone.nll != adapted.nll
    scanned = loratlas.scan(str(path), ROWS, by="gradient", budget="like=q:1" if "llama" in path.name else "like=o:1",
                          max_length=32)  # fmt: skip
    assert scanned.plan is not None
    assert scanned.plan.model == str(path)
    done = loratlas.export(trained.adapter, tmp_path / "merged", target="merged")
    assert done.check < 1e-4
    again = loratlas.evaluate(tmp_path / "merged", ROWS, dtype="float32", max_length=32)
    assert again.nll == pytest.approx(adapted.nll, abs=1e-5)


def test_an_adapter_is_written_for_the_file_and_says_how_it_is_loaded(llama, tmp_path):
    run = loratlas.train(str(llama), ROWS, placement="q:2", steps=1, lr=0.01, max_length=32)
    done = loratlas.export(run, tmp_path / "out", target="peft")
    assert done.check < 1e-5
    assert f"gguf_file={llama.name!r}" in done.recipe
    assert (tmp_path / "out" / "README.md").is_file()
    assert loratlas.check(tmp_path / "out", ["llama.cpp"]).engines[0].verdict == "right"


def test_a_file_is_converted_once_and_anew_when_it_changes(llama, tmp_path, monkeypatch):
    path = tmp_path / "base.gguf"
    shutil.copy(llama, path)
    first = readable(path, weights=True)
    monkeypatch.setattr(gguf_base, "write_folder", None)
    assert readable(path) == readable(path, weights=True) == first
    monkeypatch.undo()
    write_gguf_model(tiny_model("gpt2", vocab_size=300), tiny_tokenizer(300), path, dtype="float32")
    assert load_config(path).model_type == "gpt2"
    assert not Path(first).exists()


def test_a_file_of_the_cache_with_a_flipped_bit_is_written_anew(llama, tmp_path):
    path = tmp_path / "base.gguf"
    shutil.copy(llama, path)
    kept = Path(readable(path, weights=True))
    written = {file.name: file.read_bytes() for file in kept.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "gguf.json"} <= written.keys()
    width = load_config(path).hidden_size
    for name, before in written.items():
        changed = bytearray(before)
        changed[len(before) // 2] ^= 4
        (kept / name).write_bytes(bytes(changed))
        # Without its weights it is still described right, from the file itself.
        assert load_config(path).hidden_size == width
        assert readable(path, weights=True) == str(kept)
        assert (kept / name).read_bytes() != bytes(changed), name
    again = {file.name: file.read_bytes() for file in kept.iterdir()}
    assert again["model.safetensors"] == written["model.safetensors"]
    assert again["config.json"] == written["config.json"]


def test_files_beside_it_are_not_read(llama, tmp_path):
    """An adapter's config and a tokenizer of another model lie in the same folder."""
    path = tmp_path / "base.gguf"
    shutil.copy(llama, path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert load_config(path).model_type == "llama"
    loaded = load_model(path, dtype="float32")
    assert loaded.config.model_type == "llama"
    assert loratlas.evaluate(str(path), ROWS, dtype="float32", max_length=32).nll > 0


def test_weights_in_blocks_become_bfloat16_and_it_is_said(folder, capsys):
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
    from gguf.quants import dequantize, quantize

    model = tiny_model("llama", vocab_size=300, hidden_size=96, intermediate_size=64)
    plain, path = folder / "plain.gguf", folder / "blocks.Q8_0.gguf"
    write_gguf_model(model, tiny_tokenizer(300), plain, dtype="float32")
    reader, writer = GGUFReader(plain), GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    kind = GGMLQuantizationType.Q8_0
    for tensor in reader.tensors:
        blocks = len(tensor.shape) == 2
        data = quantize(tensor.data, kind) if blocks else tensor.data
        writer.add_tensor(tensor.name, data, raw_dtype=kind if blocks else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    loaded = load_model(path)
    assert loaded.dtype == torch.bfloat16
    weight = model.state_dict()["model.layers.1.mlp.down_proj.weight"].numpy()
    wanted = torch.from_numpy(dequantize(quantize(weight, kind), kind)).bfloat16()
    assert torch.equal(loaded.state_dict()["model.layers.1.mlp.down_proj.weight"], wanted)
    assert not np.array_equal(weight, wanted.float().numpy())
    assert run(["map", str(path), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["model"] == str(path)
    assert "dequantised to bfloat16" in said.err


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(*, tensors: int = 0, fields: int = 1, version: int = 3, rest: bytes = b"") -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, fields) + rest


ARCH = text("general.architecture") + struct.pack("<I", 8) + text("llama")
HOSTILE = {
    "empty": (b"", "too short"),
    "no magic": (b"PK" + bytes(60), "does not begin with GGUF"),
    "version": (header(version=9, rest=ARCH), "version 9"),
    "fields": (header(fields=2**60), "1,152,921,504,606,846,976 fields"),
    "tensors": (header(tensors=2**60, rest=ARCH), "1,152,921,504,606,846,976 tensors"),
    "name": (header(rest=struct.pack("<Q", 2**50)), "a name of"),
    "text": (header(rest=text("a") + struct.pack("<IQ", 8, 2**50)), "beyond the end"),
    "array": (header(rest=text("a") + struct.pack("<IIQ", 9, 8, 2**40)), "a with 1,099,511,627,776 entries"),
    "nested": (header(rest=text("a") + struct.pack("<IIQ", 9, 9, 2)), "array of an unknown type"),
    "type": (header(rest=text("a") + struct.pack("<I", 77)), "unknown type"),
    "no architecture": (header(rest=text("a") + struct.pack("<IB", 0, 1)), "without general.architecture"),
    "dimensions": (header(tensors=1, rest=ARCH + text("t") + struct.pack("<I", 2**31)), "dimensions"),
    "tensor type": (
        header(tensors=1, rest=ARCH + text("t") + struct.pack("<IQIQ", 1, 32, 999, 0)),
        "type 999",
    ),
    "blocks": (header(tensors=1, rest=ARCH + text("t") + struct.pack("<IQIQ", 1, 33, 2, 0)), "shape"),
    "size": (
        header(tensors=1, rest=ARCH + text("t") + struct.pack("<I3QIQ", 3, 2**40, 2**40, 2**40, 0, 0)),
        "cut off",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_a_sentence(name, tmp_path, capsys):
    content, said = HOSTILE[name]
    path = tmp_path / "base.gguf"
    path.write_bytes(content)
    assert run(["map", str(path), "--json"]) == 2
    assert said in json.loads(capsys.readouterr().out)["error"]["found"]


def test_a_file_that_was_cut_off_is_a_sentence(llama, tmp_path):
    whole = llama.read_bytes()
    for length in (100, 3_000, len(whole) - 5_000):
        path = tmp_path / f"{length}.gguf"
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"beyond the end|was cut off|entries"):
            load_config(path)


def test_an_unknown_architecture_pieces_and_adapters_are_refused(llama, tmp_path):
    whole = llama.read_bytes()
    path = tmp_path / "unknown.gguf"
    path.write_bytes(whole.replace(text("llama"), text("lmama"), 1))
    with pytest.raises(ModelError, match="architecture 'lmama' that transformers"):
        load_config(path)
    piece = text("split.count") + struct.pack("<IH", 2, 3)
    path.write_bytes(header(fields=2, rest=ARCH + piece))
    with pytest.raises(ModelError, match="one of 3 pieces"):
        read_gguf_header(path)
    kind = text("general.type") + struct.pack("<I", 8) + text("adapter")
    path.write_bytes(header(fields=2, rest=ARCH + kind))
    with pytest.raises(ModelError, match="'adapter', which is no whole model"):
        read_gguf_header(path)
    with pytest.raises(ModelError, match="No such file"):
        loratlas.read(str(tmp_path / "nowhere.gguf"))
    assert not list((cache_folder() / "gguf").glob("*/.*"))


def test_weights_that_are_missing_are_named(llama, tmp_path):
    path = tmp_path / "less.gguf"
    path.write_bytes(llama.read_bytes().replace(text("blk.1.ffn_up.weight"), text("blk.1.ffn_xp.weight"), 1))
    with pytest.raises(ModelError, match=r"weights without model\.layers\.1\.mlp\.up_proj"):
        load_model(path)


def test_the_file_of_a_real_base_has_the_numbers_of_its_folder():
    known = bases_folder() / "smollm2-135m"
    path = known / REAL_BASES["smollm2-135m"].gguf
    if not path.is_file():
        pytest.skip(f"needs {path}, which `make real-bases` puts there")
    assert is_gguf(path)
    loaded, wanted = load_model(path), load_model(known)
    own = wanted.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in loaded.state_dict().items())
