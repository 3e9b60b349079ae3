"""Checkpoints: whole or not there, the last one kept, and only taken up by the run that wrote them."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_model
from tests.training.small import adapted, encoded

from loratlas.errors import OutputError, StorageError
from loratlas.training.checkpoint import Checkpoints, weights_digest
from loratlas.training.loop import fit
from loratlas.training.settings import Settings

FAST = Settings(steps=6, lr=1e-2, batch_size=4, dtype="float32", save_every=2)
TENSORS = {"a": torch.arange(5.0), "b": torch.eye(3)}


def test_read_back_and_only_the_last_is_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, identity={"seed": 1})
    assert checkpoints.load() is None
    for step in (2, 4):
        checkpoints.save(step, {"a": TENSORS["a"] + step}, {"step": step})
    tensors, state = checkpoints.load() or ({}, {})
    assert state == {"step": 4}
    assert torch.equal(tensors["a"], TENSORS["a"] + 4)
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["step-00000004"]


def test_another_run_is_refused_and_named(tmp_path):
    fit(adapted(), encoded(), FAST, out=tmp_path, packed=True)
    with pytest.raises(OutputError, match=r"settings\.lr was 0\.01, now 0\.5"):
        fit(adapted(), encoded(), replace(FAST, lr=0.5), out=tmp_path, resume=True, packed=True)
    with pytest.raises(OutputError, match="data"):
        fit(adapted(), encoded(seed=3), FAST, out=tmp_path, resume=True, packed=True)
    with pytest.raises(OutputError, match=r"base\.adapter default\.alpha was 8, now 4"):
        fit(adapted(rank=2), encoded(), FAST, out=tmp_path, resume=True, packed=True)


def test_shapes_of_what_is_trained_are_part_of_an_identity(tmp_path):
    Checkpoints(tmp_path, identity={"parameters": {"a": [4, 8]}}).save(1, TENSORS, {})
    with pytest.raises(OutputError, match=r"parameters\.a was \[4, 8\], now \[2, 8\]"):
        Checkpoints(tmp_path, identity={"parameters": {"a": [2, 8]}}).load()


def test_what_settings_do_not_say_is_part_of_a_runs_identity(tmp_path):
    """Scale of the adapters, and every number of the base."""
    fit(adapted(), encoded(), FAST, out=tmp_path, packed=True)
    go_on = {"out": tmp_path, "resume": True, "packed": True}
    scaled, rooted, other = adapted(), adapted(), adapted()
    scaled.peft_config["default"].lora_alpha = 64
    for layer in scaled.modules():
        if isinstance(getattr(layer, "scaling", None), dict):
            layer.scaling["default"] = 16.0
    with pytest.raises(OutputError, match=r"alpha was 8, now 64"):
        fit(scaled, encoded(), FAST, **go_on)
    rooted.peft_config["default"].use_rslora = True
    with pytest.raises(OutputError, match=r"rslora was False, now True"):
        fit(rooted, encoded(), FAST, **go_on)
    frozen = next(p for p in other.parameters() if not p.requires_grad)
    frozen.data.view(-1)[-1] += 1e-3
    with pytest.raises(OutputError, match=r"base\.weights was"):
        fit(other, encoded(), FAST, **go_on)


def test_a_base_has_one_digest_under_any_adapter():
    bare, carrying = tiny_model("llama"), adapted()
    assert weights_digest(bare.requires_grad_(False)) == weights_digest(carrying)
    carrying.get_base_model().get_input_embeddings().weight.data[0, 0] += 1e-6
    assert weights_digest(bare) != weights_digest(carrying)


def test_damage_is_said(tmp_path):
    fit(adapted(), encoded(), FAST, out=tmp_path, packed=True)
    tensors = next(tmp_path.glob("checkpoint/step-*/state.safetensors"))
    tensors.write_bytes(tensors.read_bytes()[:100])
    with pytest.raises(OutputError, match=r"state\.safetensors is not what was written"):
        fit(adapted(), encoded(), FAST, out=tmp_path, resume=True, packed=True)


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "sha256.json"])
def test_every_flipped_bit_is_found(tmp_path, name):
    checkpoints = Checkpoints(tmp_path, identity={"seed": 1})
    checkpoints.save(1, TENSORS, {"loss": 1.5})
    file = next(tmp_path.glob(f"checkpoint/step-*/{name}"))
    whole = file.read_bytes()
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(bytes(changed))
        with pytest.raises(OutputError):
            checkpoints.load()
    file.write_bytes(whole)
    assert checkpoints.load() is not None


@pytest.mark.parametrize("name", ["state.json", "sha256.json"])
def test_brackets_without_end_are_a_sentence(tmp_path, name):
    checkpoints = Checkpoints(tmp_path, identity={"seed": 1})
    checkpoints.save(1, TENSORS, {"loss": 1.5})
    next(tmp_path.glob(f"checkpoint/step-*/{name}")).write_text("[" * 100_000)
    with pytest.raises(OutputError):
        checkpoints.load()


def test_saving_a_step_again_keeps_a_whole_one_at_every_moment(tmp_path, monkeypatch):
    """The one that lies there is moved away before the new one has its name, and found again if that never happens."""
    checkpoints = Checkpoints(tmp_path, identity={})
    checkpoints.save(1, TENSORS, {"loss": 1.5})
    renamed = Path.rename

    def killed(self, target):
        if self.name.endswith(".part"):
            raise KeyboardInterrupt
        return renamed(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(1, TENSORS, {"loss": 2.5})
    tensors, state = checkpoints.load() or ({}, {})
    assert state == {"loss": 1.5}
    assert torch.equal(tensors["b"], TENSORS["b"])


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path, identity={})
    left = tmp_path / "checkpoint" / ".step-00000001.99999999.part"
    left.mkdir(parents=True)
    (left / "state.json").write_text("{")
    assert checkpoints.load() is None
    checkpoints.save(1, TENSORS, {})
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["step-00000001"]


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="needs Linux's /dev/full, a disk that is always full"
)
def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    """The real system call fails: the file that is opened is the device that is always full."""
    checkpoints = Checkpoints(tmp_path, identity={})
    checkpoints.save(1, TENSORS, {"good": True})
    opened = Path.open

    def full(self, mode="r", *arguments, **options):
        return opened(
            Path("/dev/full") if self.name == "state.safetensors" else self, mode, *arguments, **options
        )

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(StorageError, match="No space left"):
            checkpoints.save(2, TENSORS, {"good": False})
    tensors, state = checkpoints.load() or ({}, {})
    assert state == {"good": True}
    assert torch.equal(tensors["b"], TENSORS["b"])
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["step-00000001"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_no_permission(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    with pytest.raises(StorageError, match="Permission denied"):
        fit(adapted(), encoded(), FAST, out=folder, packed=True)
    folder.chmod(0o700)
    shutil.rmtree(folder)


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "run").write_text("not a folder")
    with pytest.raises(StorageError, match="could not be written"):
        fit(adapted(), encoded(), FAST, out=tmp_path / "run", packed=True)
