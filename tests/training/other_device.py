"""Entries walked on another device than the CPU, without one: run as ``python -m tests.training.other_device NAME…``.

A device is registered from Python that no kernel serves; tensors on it have shapes and no numbers, and whatever mixes
them with tensors of the CPU raises. Prints one JSON object: entry → what went wrong, or null.
"""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from tests.tasks.bases import LABELS, rows
from tests.tiny import tiny_config, tiny_model
from tests.training.small import adapted, encoded
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend
from transformers import AutoModelForSequenceClassification

import loratlas
from loratlas.adapters.attach import attach
from loratlas.adapters.export.merge_adapter import merged_base
from loratlas.anatomy.read import read
from loratlas.anatomy.role_table import in_set
from loratlas.cost import recorder
from loratlas.cost.dry_run import _materialise, dry_run, even_rows
from loratlas.cost.recorder import recording
from loratlas.data.batches.packing_proof import prove_packing
from loratlas.dynamic.controller import PlacementController
from loratlas.dynamic.policies.known_policies import policy_named
from loratlas.evaluation.class_losses import classify
from loratlas.evaluation.forward_condition import Condition
from loratlas.evaluation.generate import _generate, _Question
from loratlas.evaluation.score import score
from loratlas.evaluation.token_scorer import ScoringPass, run_pass
from loratlas.models.quiet import quiet
from loratlas.placement.plan import place
from loratlas.scan.run_scan import scan
from loratlas.signals.registry import untrained
from loratlas.training.fleet.train_fleet import Fleet, Member
from loratlas.training.loop import fit
from loratlas.training.master_weights import MasterWeights
from loratlas.training.optimizer import MOMENTS, Optimizer
from loratlas.training.settings import Settings

NAME = "other"
FRACTION = 0.0
"""What a fraction is that code asks for: 0, so that nothing differs from anything, unless an entry says so."""

_REAL_NUMPY = torch.Tensor.numpy
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


_KINDS = {torch.bool: np.bool_, torch.float32: np.float32, torch.float64: np.float64, torch.int32: np.int32}


def _numbers(tensor: torch.Tensor) -> np.ndarray:
    kind = _KINDS.get(tensor.dtype, np.int64)
    return np.full(tuple(tensor.shape), FRACTION if tensor.is_floating_point() else 0, kind)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    """Numbers that code asks for; torch hands them to NumPy from the CPU alone."""
    if not isinstance(tensor, FakeTensor):
        return _REAL_NUMPY(tensor)
    if tensor.device.type != "cpu":
        raise TypeError(f"can't convert {tensor.device.type} device type tensor to numpy")
    return _numbers(tensor)


def _apply(module: torch.nn.Module, move: Any, recurse: bool = True) -> torch.nn.Module:
    """`torch.nn.Module._apply` with new parameters, for tensors without numbers cannot be swapped."""
    for child in module.children():
        _apply(child, move)
    for name, own in module._parameters.items():
        if own is not None:
            module._parameters[name] = torch.nn.Parameter(move(own.detach()), own.requires_grad)
    for name, own in module._buffers.items():
        module._buffers[name] = own if own is None else move(own)
    return module


class OneIsThere(TorchDispatchMode):
    """How many numbers are not 0 cannot be asked of numbers that are not there: one is."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def one(mask: torch.Tensor) -> torch.Tensor:
            return torch.zeros((1, mask.ndim), dtype=torch.int64, device=mask.device)

        if func is torch.ops.aten.nonzero.default:
            return one(args[0])
        if func is torch.ops.aten.index.Tensor:
            masks = [
                [own] if own is None or own.dtype != torch.bool else one(own).unbind(1) for own in args[1]
            ]
            args = (args[0], [own for each in masks for own in each])
        return func(*args, **(kwargs or {}))


def _all_finite(tensor: torch.Tensor) -> torch.Tensor:
    fine = torch.ones_like(tensor, dtype=torch.bool)
    fine.loratlas_holds = True  # type: ignore[attr-defined]
    return fine


@contextmanager
def shapes_only() -> Iterator[None]:
    """Tensors are made without numbers within."""
    with recording(), OneIsThere():
        yield


def trained(model: Any, settings: Settings = SETTINGS, *, packed: bool = True, **options: Any) -> Any:
    """The result of a run of a model that was moved to the other device."""
    with shapes_only():
        _materialise(model, torch.device(NAME))
        return fit(model, encoded(12), settings, packed=packed, **options)


def a_cpu_tensor_in_the_wrong_place() -> None:
    """Shows that the walk can fail: this one must."""
    with shapes_only():
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
    with shapes_only():
        _materialise(model, torch.device(NAME))
        masters = MasterWeights(model)
        optimizer = Optimizer(masters, SETTINGS, steps=3)
        flat = [torch.zeros(len(group.master)) for group in masters.groups]
        optimizer.load({f"{i}.{name}": own for i, own in enumerate(flat) for name in MOMENTS}, 2)
        optimizer.update(2, 0.0)
        held = [value for state in optimizer._adam.state.values() for value in state.values()]
        assert {value.device.type for value in held} == {NAME}


def train_while_a_policy_moves_ranks() -> None:
    model = adapted()
    sites = [site for site in read(model.base_model.model.config).adaptable if in_set("all", site.role)]
    budget = sum(site.lora_parameters(4) for site in sites)
    controller = PlacementController(sites, policy_named("gradient"), budget=budget)
    assert trained(model, replace(SETTINGS, steps=8), hooks=(controller,)).steps == 8


def fleets() -> None:
    base = tiny_model("llama")
    plan = place(read(base.config), "all:2").rows
    members = [Member(rows=plan, settings=replace(SETTINGS, seed=seed)) for seed in range(2)]
    with shapes_only():
        _materialise(base, torch.device(NAME))
        fleet = Fleet(base, encoded(12), members)
        assert [result.steps for result in fleet.fit()] == [3, 3]
        fleet.peft_model(0)


@contextmanager
def base_there(kind: str = "llama", **changes: Any) -> Iterator[Any]:
    """A bare base on the other device."""
    model = tiny_model(kind, **changes)
    with shapes_only():
        _materialise(model, torch.device(NAME))
        yield model


def evaluate() -> None:
    with base_there() as model:
        for packed in (True, False):
            score(model, encoded(6), packed=packed)


def evaluate_an_adapter_as_other_definitions_do() -> None:
    model = adapted()
    with shapes_only():
        _materialise(model, torch.device(NAME))
        for condition in (Condition(padding="left", batch_size=3), Condition(window=16, stride=8)):
            what = ScoringPass(packed=False, condition=condition, everything=True, uniform=True, bounds=True)
            run_pass(model, encoded(6).examples, what, lambda tokens: None)


def evaluate_a_classifier() -> None:
    with shapes_only(), quiet():
        model = AutoModelForSequenceClassification.from_config(tiny_config("llama", pad_token_id=0)).eval()
        _materialise(model, torch.device(NAME))
        classify(model, rows("llama", LABELS, 6))


def generate_answers() -> None:
    class Ids:
        """Stands for a tokenizer, of which generation needs names of tokens only."""

        eos_token_id = pad_token_id = sep_token_id = 0

        def decode(self, ids: torch.Tensor, *, skip_special_tokens: bool) -> str:
            return str(len(ids))

    question = _Question(row=0, prompt="", ids=[5, 6, 7], wanted="")
    with base_there() as model:
        unfinished = iter((True, True, True, False))  # no number says when an answer ends
        model._has_unfinished_sequences = lambda *_, **__: next(unfinished)
        assert _generate(model, Ids(), [(question, 3)]) == ["3"]


def prove_packed_batches() -> None:
    with base_there() as model:
        prove_packing(model)


def scan_every_signal() -> None:
    global FRACTION
    FRACTION = 1.0  # something varies
    for kind, packed in (("llama", True), ("gpt2", False)):
        with base_there(kind, num_hidden_layers=1) as model:
            anatomy, names = read(model.config), untrained()
            scan(model, anatomy, encoded(4), signals=names, by="spectrum", among="attention", packed=packed)
    FRACTION = 0.0


def scan_by_trials() -> None:
    anatomy = read(tiny_config("llama"))
    with base_there() as model:
        scan(
            model,
            anatomy,
            encoded(8),
            signals=["probe", "probe_yield"],
            trial_steps=2,
            among="q,down@0",
            packed=True,
        )


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


def read_and_place_a_model_that_is_there() -> None:
    """What `map` and `plan` do, asked of a live model: built on the meta device, adapted where the model is."""
    base = tiny_model("llama")
    with shapes_only():
        _materialise(base, torch.device(NAME))
    anatomy = loratlas.read(base)
    assert {tensor.device.type for tensor in base.parameters()} == {NAME}
    plan = loratlas.place(base, "q,down:2", budget="params=2k")
    assert plan.config_digest == anatomy.config_digest
    plan.to_peft(base)
    with shapes_only():
        tuned = plan.attach(base, seed=0)
        assert {tensor.device.type for tensor in tuned.parameters()} == {NAME}


def merge_for_export() -> None:
    """What `export --for merged` does with weights, a head included that has to leave its embedding."""
    base = tiny_model("gpt2", tie_word_embeddings=True)
    with tempfile.TemporaryDirectory() as folder:
        base.config.save_pretrained(folder)
        config = LoraConfig(r=2, target_modules=["c_attn", "lm_head"], fan_in_fan_out=True)
        with shapes_only(), quiet():
            _materialise(base, torch.device(NAME))
            merged = merged_base(get_peft_model(base, config), folder, given="a merge")
            assert {tensor.device.type for tensor in merged.parameters()} == {NAME}
            assert merged.lm_head.weight is not merged.transformer.wte.weight
            merged(input_ids=torch.zeros((1, 4), dtype=torch.int64, device=NAME))


ENTRIES = {
    entry.__name__: entry
    for entry in (
        a_cpu_tensor_in_the_wrong_place,
        train_packed,
        train_padded_in_pieces,
        train_with_dropout,
        train_from_kept_states,
        train_while_a_policy_moves_ranks,
        fleets,
        evaluate,
        evaluate_an_adapter_as_other_definitions_do,
        evaluate_a_classifier,
        generate_answers,
        prove_packed_batches,
        scan_every_signal,
        scan_by_trials,
        moments_are_taken_up,
        predict,
        read_and_place_a_model_that_is_there,
        merge_for_export,
    )
}


def main() -> None:
    """Walk the entries that are asked for, or all."""
    warnings.simplefilter("ignore")
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    kernels = torch.library.Library("aten", "IMPL")
    kernels.impl("empty_strided", _empty_strided, "PrivateUse1")
    kernels.impl("_copy_from", lambda source, target, non_blocking=False: target, "PrivateUse1")
    answer = recorder._answer
    recorder._answer = lambda asked: FRACTION if asked.is_floating_point() else answer(asked)
    torch.isfinite = _all_finite
    torch.nn.Module._apply = _apply  # type: ignore[method-assign]
    torch.Tensor.numpy = _numpy  # type: ignore[assignment, method-assign]
    torch.Tensor.tolist = lambda tensor: _numbers(tensor).tolist()  # type: ignore[assignment, method-assign]
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
