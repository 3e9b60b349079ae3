"""Entries walked on another device than the CPU, without one: run as ``python -m tests.training.other_device NAME…``.

A device is registered from Python that no kernel serves; tensors on it have shapes and no numbers, and whatever mixes
them with tensors of the CPU raises. Prints one JSON object: entry → what went wrong, or null.
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from dataclasses import replace
from typing import Any

import torch
from tests.tiny import tiny_config, tiny_model
from tests.training.small import adapted, encoded
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from loratlas.adapters.attach import attach
from loratlas.anatomy.read import read
from loratlas.cost.dry_run import _materialise, dry_run, even_rows
from loratlas.cost.recorder import recording
from loratlas.placement.plan import place
from loratlas.training.loop import fit
from loratlas.training.master_weights import MasterWeights
from loratlas.training.optimizer import MOMENTS, Optimizer
from loratlas.training.settings import Settings

NAME = "other"
SETTINGS = Settings(steps=3, lr=1e-3, batch_size=4, dtype="float32", compile="off", loraplus=2.0)


class _Backend(_DummyBackendModule):
    """What torch asks a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.zeros(0, dtype=torch.uint8)

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        pass


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> torch.Tensor:
    """Of constants, which even tensors without numbers begin as."""
    return torch._C._acc.create_empty_tensor(size, dtype or torch.float32)


def trained(model: Any, settings: Settings = SETTINGS, *, packed: bool = True, **options: Any) -> Any:
    """The result of a run of a model that was moved to the other device."""
    with recording():
        _materialise(model, torch.device(NAME))
        return fit(model, encoded(12), settings, packed=packed, **options)


def a_cpu_tensor_in_the_wrong_place() -> None:
    """Shows that the walk can fail: this one must."""
    with recording():
        torch.zeros(3, device=NAME) + torch.zeros(3)


def train_packed() -> None:
    assert trained(adapted()).steps == 3


def train_padded_in_pieces() -> None:
    settings = replace(SETTINGS, micro_batch=2, checkpointing=True, clip=1e-9)
    assert trained(adapted("gpt2"), settings, packed=False).steps == 3


def train_with_dropout() -> None:
    assert trained(adapted(lora_dropout=0.1), replace(SETTINGS, dropout=0.1)).steps == 3


def train_from_kept_states() -> None:
    base = tiny_model("llama")
    model = attach(place(read(base.config), "all@top/2:4").rows, base)
    result = trained(model, replace(SETTINGS, steps=6))
    assert result.kept_layers > 0, result.kept_reason


def moments_are_taken_up() -> None:
    model = adapted()
    with recording():
        _materialise(model, torch.device(NAME))
        masters = MasterWeights(model)
        optimizer = Optimizer(masters, SETTINGS, steps=3)
        flat = [torch.zeros(len(group.master)) for group in masters.groups]
        optimizer.load({f"{i}.{name}": own for i, own in enumerate(flat) for name in MOMENTS}, 2)
        optimizer.update(2, 0.0)
        held = [value for state in optimizer._adam.state.values() for value in state.values()]
        assert {value.device.type for value in held} == {NAME}


def predict() -> None:
    config = tiny_config("llama")
    dry_run(
        config,
        place(config, "all@top/2:4").rows,
        even_rows(4, 16),
        SETTINGS,
        packed=True,
        repeated_tokens=640,
        device=NAME,
    )


ENTRIES = {
    entry.__name__: entry
    for entry in (
        a_cpu_tensor_in_the_wrong_place,
        train_packed,
        train_padded_in_pieces,
        train_with_dropout,
        train_from_kept_states,
        moments_are_taken_up,
        predict,
    )
}


def main() -> None:
    """Walk the entries that are asked for, or all."""
    warnings.simplefilter("ignore")
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    kernels = torch.library.Library("aten", "IMPL")
    kernels.impl("empty_strided", _empty_strided, "PrivateUse1")
    kernels.impl("_copy_from", lambda source, target, non_blocking=False: target, "PrivateUse1")
    wrong: dict[str, str | None] = {}
    for name in sys.argv[1:] or ENTRIES:
        try:
            ENTRIES[name]()
            wrong[name] = None
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            where = [f"{frame.filename}:{frame.lineno}" for frame in frames if "loratlas" in frame.filename]
            wrong[name] = f"{type(error).__name__}: {str(error)[:200]} ({', '.join(where[-3:])})"
    print(json.dumps(wrong))


if __name__ == "__main__":
    main()
