"""Strict loading: an adapter that was changed, cut off or swapped is a sentence, and the base stays as it was."""

from __future__ import annotations

import json
import pickle
import random
import re
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.adapters.test_adapter_files import logits, trained
from tests.tiny import tiny_model

from loratlas.adapters.stored.adapter_files import save_adapter
from loratlas.adapters.stored.load_adapter import load_adapter
from loratlas.adapters.stored.lora_options import lora_config_of
from loratlas.adapters.stored.read_adapter import MARKER, WEIGHTS, read_adapter
from loratlas.adapters.stored.safetensors_header import read_header
from loratlas.errors import LoratlasError, ModelError

NOTES = "loratlas.json"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    plan, adapted = trained("llama", "q,v:2")
    return save_adapter(adapted, tmp_path / "own", plan_json=plan.to_json())


@pytest.fixture
def foreign(adapter: Path, tmp_path: Path) -> Path:
    """The same adapter without notes, as another tool would leave it."""
    folder = Path(shutil.copytree(adapter, tmp_path / "theirs"))
    (folder / NOTES).unlink()
    return folder


def flip(path: Path, bit: int) -> bytes:
    """Flip one bit of a file, and return what it held."""
    before = path.read_bytes()
    after = bytearray(before)
    after[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(after))
    return before


@pytest.mark.parametrize("name", [WEIGHTS, MARKER, NOTES])
def test_a_flipped_bit_is_found_in_every_file(adapter, name):
    path = adapter / name
    bits = 8 * path.stat().st_size
    ends = [*range(600), *range(bits - 2400, bits)] if name == NOTES else [0, 1, 64, bits - 1]
    for bit in [*ends, *random.Random(0).sample(range(bits), 150)]:
        before = flip(path, bit)
        with pytest.raises(ModelError):
            read_adapter(adapter)
        path.write_bytes(before)
    assert read_adapter(adapter).notes["version"] == 2


@pytest.mark.parametrize("name", [WEIGHTS, MARKER])
def test_without_notes_a_flipped_bit_is_a_sentence_or_nothing(foreign, name):
    """Never a traceback of another library, whatever a file holds."""
    path = foreign / name
    refused = 0
    header = 8 * (8 + int.from_bytes(path.read_bytes()[:8], "little")) if name == WEIGHTS else None
    for bit in random.Random(1).sample(range(header or 8 * path.stat().st_size), 400):
        before = flip(path, bit)
        try:
            contents = read_adapter(foreign)
            lora_config_of(contents.config, foreign)
        except LoratlasError:
            refused += 1
        path.write_bytes(before)
    assert refused > 100


def test_adapters_of_the_first_version_have_structure_alone(adapter):
    notes = json.loads((adapter / NOTES).read_text())
    del notes["seal"], notes["sha256"]
    (adapter / NOTES).write_text(json.dumps({**notes, "version": 1}))
    assert read_adapter(adapter).notes["plan"] == notes["plan"]
    load_adapter(tiny_model("llama"), adapter)


def test_another_alpha_than_the_plan_beside_it(adapter):
    notes = json.loads((adapter / NOTES).read_text())
    del notes["seal"], notes["sha256"]
    (adapter / NOTES).write_text(json.dumps({**notes, "version": 1}))
    config = json.loads((adapter / MARKER).read_text())
    (adapter / MARKER).write_text(json.dumps({**config, "lora_alpha": 64}))
    base = tiny_model("llama")
    wanted = logits(base)
    with pytest.raises(ModelError, match="scale"):
        load_adapter(base, adapter)
    assert torch.equal(logits(base), wanted)
    assert not hasattr(base, "peft_config")


def _change(folder: Path, change) -> None:
    state = load_file(folder / WEIGHTS)
    save_file(change(state), folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: {k: v for k, v in s.items() if "layers.1.self_attn.q_proj.lora_B" not in k}, "missing"),
        (lambda s: s | {next(iter(s)).replace("layers.0", "layers.7"): torch.ones(2, 48)}, "no use for"),
        (lambda s: s | {"base_model.model.model.norm.weight": torch.ones(48)}, "the base itself"),
        (lambda s: {k: v.to(torch.int8) for k, v in s.items()}, "I8"),
        (lambda s: {k: v.double() for k, v in s.items()}, "F64"),
        (
            lambda s: {k: v[:, :40].contiguous() if "lora_A" in k else v for k, v in s.items()},
            "size mismatch",
        ),
        (lambda s: {k: v * float("nan") for k, v in s.items()}, "NaN"),
        (lambda s: {k: v / 0 if "lora_B" in k else v for k, v in s.items()}, "NaN"),
        (lambda s: {k: v[:0] for k, v in s.items()}, "without a number"),
        (lambda s: {}, "no tensor"),
        (lambda s: s | {next(iter(s)): torch.tensor(1.0)}, "a single number"),
    ],
    ids=[
        "missing",
        "extra",
        "base",
        "int8",
        "float64",
        "narrow",
        "nan",
        "infinite",
        "empty",
        "none",
        "scalar",
    ],
)
def test_tensors_that_are_not_the_adapters(foreign, change, said):
    _change(foreign, change)
    base = tiny_model("llama")
    wanted = logits(base)
    with pytest.raises(ModelError, match=said):
        load_adapter(base, foreign)
    assert torch.equal(logits(base), wanted)
    assert not any("lora" in name for name, _ in base.named_modules())


def test_a_pickle_is_never_opened(foreign, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.write_text, (tmp_path / "ran", "x")

    (foreign / WEIGHTS).unlink()
    (foreign / "adapter_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ModelError, match="pickle"):
        load_adapter(tiny_model("llama"), foreign)
    assert not (tmp_path / "ran").exists()


def _file(header: object, numbers: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + numbers


ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "too short"),
        (b"\1\0\0", "too short"),
        (_file({"a": ENTRY}, b"", 2**63), "too short"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (_file(b"[1, 2"), "no JSON"),
        (_file(b"[" * 100_000), "no JSON"),
        (_file(b"\xff\xfe"), "no JSON"),
        (_file([1, 2]), "no table"),
        (_file(b'{"a": 1, "a": 2}'), "twice"),
        (_file({"a": 3}), "without type"),
        (_file({"a": {**ENTRY, "dtype": "F31"}}, bytes(16)), "F31"),
        (_file({"a": {**ENTRY, "shape": [2, -2]}}, bytes(16)), "shape"),
        (_file({"a": {**ENTRY, "shape": [2, 2.0]}}, bytes(16)), "shape"),
        (_file({"a": {**ENTRY, "shape": [10**9, 10**9]}}, bytes(16)), "takes another number"),
        (_file({"a": {**ENTRY, "data_offsets": [16, 0]}}, bytes(16)), "takes another number"),
        (_file({"a": ENTRY}, bytes(8)), "announces"),
        (_file({"a": ENTRY}, bytes(20)), "announces"),
        (_file({"a": ENTRY, "b": ENTRY}, bytes(16)), "begin where"),
        (_file({"a": ENTRY, "b": {**ENTRY, "data_offsets": [8, 24]}}, bytes(24)), "begin where"),
        (_file({"a": {**ENTRY, "data_offsets": [-16, 0]}}, bytes(16)), "an entry 'a'"),
        (_file({"a": {**ENTRY, "shape": [True, 4]}}, bytes(16)), "shape"),
        (_file(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', bytes(4)), "shape"),
    ],
)
def test_headers_that_contradict_themselves(tmp_path, content, said):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=said):
        read_header(path)


def test_a_header_longer_than_the_format_allows_is_not_read(tmp_path):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(8 + 100_000_001)  # no block of it is on disk
    with pytest.raises(ModelError, match="longer than the format allows"):
        read_header(path)


def test_a_header_names_what_safetensors_reads(foreign):
    entries, tensors = read_header(foreign / WEIGHTS), load_file(foreign / WEIGHTS)
    assert {name: entry.shape for name, entry in entries.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"r": "4"}, "rank '4'"),
        ({"r": 0}, "rank '0'"),
        ({"r": True}, "rank 'True'"),
        ({"lora_alpha": float("inf")}, "alpha 'inf'"),
        ({"rank_pattern": [4]}, "no table"),
        ({"target_modules": r"(a+)+$"}, "repetition inside a repetition"),
        ({"rank_pattern": {r"(x*)*y": 2}}, "repetition inside a repetition"),
        ({"target_modules": "(("}, "does not parse"),
        ({"peft_type": None}, "peft_type"),
        ({"init_lora_weights": 3}, "initialisation '3'"),
        ({"init_lora_weights": ["pissa"]}, "initialisation"),
        ({"modules_to_save": "lm_head"}, "no list"),
        ({"peft_type": "NEXT_BIG_THING"}, "NEXT_BIG_THING"),
    ],
)
def test_configs_that_make_no_sense(foreign, edit, said):
    config = json.loads((foreign / MARKER).read_text())
    (foreign / MARKER).write_text(json.dumps({**config, **edit}))
    with pytest.raises(ModelError, match=re.escape(said)):
        read_adapter(foreign)


def test_numbers_that_are_not_finite_are_not_saved(tmp_path):
    _, adapted = trained("llama", "q,v:2")
    with torch.no_grad():
        next(p for n, p in adapted.named_parameters() if "lora_B" in n)[0, 0] = float("inf")
    with pytest.raises(ModelError, match="lora_B"):
        save_adapter(adapted, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_the_embedded_base_is_as_it_was_packed(tmp_path):
    from loratlas.demo.base_files import base_path, check_digests

    packed = base_path()
    assert set(json.loads((packed / "sha256.json").read_text())) == {
        path.name for path in packed.iterdir() if path.suffix in (".json", ".safetensors")
    } - {"sha256.json"}
    for index, name in enumerate(("config.json", "model.safetensors", "tokenizer.json", "sha256.json")):
        copy = Path(shutil.copytree(packed, tmp_path / str(index)))
        flip(copy / name, 8 * ((copy / name).stat().st_size // 2))
        with pytest.raises(ModelError):
            check_digests(copy)
