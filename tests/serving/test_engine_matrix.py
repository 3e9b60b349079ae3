"""Adapters of every kind × engines: served with PEFT's change of every matrix, or refused with a sentence.

What PEFT does is taken from its own merging: the difference of all parameters. What an engine does is computed from the
written folder by its rule (`reference_readers`). Nothing may differ in silence.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests.conformance.adapter_cases import CASES, KINDS, Case, save_bases, save_case
from tests.serving.reference_readers import READERS

from loratlas.adapters.peft_check import expected_warnings
from loratlas.errors import RequestError
from loratlas.models.quiet import quiet
from loratlas.serving.adapter_header import read_adapter_header
from loratlas.serving.engine_export import write_for_engine
from loratlas.serving.engine_registry import ENGINES

QKVO = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]


def _plan(name: str, base: str = "llama", **config: Any) -> Case:
    return Case(name=name, base=base, config={"r": 8, "lora_alpha": 16, **config})


PLANS = (
    *(case for case in CASES if case.refused is None),
    _plan("uniform attention", target_modules=QKVO),
    _plan("uniform everything", target_modules=[*QKVO, *MLP], lora_alpha=12),
    _plan("mixed rank", target_modules=[*QKVO, *MLP], rank_pattern={"down_proj": 3, "v_proj": 16}),
    _plan("mixed scale", target_modules=[*QKVO, *MLP], alpha_pattern={"down_proj": 5, "up_proj": 1}),
    _plan("one layer", target_modules=[*QKVO, *MLP], layers_to_transform=[1]),
    _plan("one matrix", target_modules=r"model\.layers\.0\.mlp\.down_proj"),
    _plan("up alone", target_modules=["up_proj"]),
    _plan("k alone, rslora", target_modules=["k_proj"], use_rslora=True, r=5),
    _plan("rank of three", target_modules=[*QKVO], r=3, lora_alpha=7),
    _plan(
        "experts mixed",
        "mixtral",
        target_modules=QKVO,
        target_parameters=["experts.down_proj"],
        rank_pattern={"experts.down_proj": 2},
    ),
    _plan("gate and up of experts", "mixtral", target_modules=["q_proj"], target_parameters=["experts.gate_up_proj"]),
    _plan(
        "gpt2 all, mixed",
        "gpt2",
        target_modules=["c_attn", "c_fc", "c_proj"],
        fan_in_fan_out=True,
        rank_pattern={"c_fc": 2},
    ),
    _plan("head adapted too", target_modules=[*QKVO, "lm_head"]),
    _plan("rslora mixed", target_modules=[*QKVO, *MLP], use_rslora=True, rank_pattern={"down_proj": 16}),
    _plan("dora everything", target_modules=[*QKVO, *MLP], use_dora=True),
)  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_bases(tmp_path_factory.mktemp("bases"))


def change_of_peft(case: Case, base: Path, folder: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """The base, and by parameter what merging the adapter changes."""
    with quiet(), expected_warnings():
        own = KINDS[case.kind].from_pretrained(base, dtype=torch.float32, **case.options)
        merged = KINDS[case.kind].from_pretrained(base, dtype=torch.float32, **case.options)
        for model in (own, merged):
            if model.config.tie_word_embeddings and hasattr(model, "lm_head"):
                # Merged as one matrix both ends would change, where PEFT itself changes one.
                model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
                model.config.tie_word_embeddings = False
        if case.kind == "classes":
            config = folder / "adapter_config.json"
            config.write_text(json.dumps(json.loads(config.read_text()) | {"task_type": "SEQ_CLS"}))
        merged = PeftModel.from_pretrained(merged, str(folder)).merge_and_unload()
    before, after = own.state_dict(), merged.state_dict()
    turned = {n for n, m in own.named_modules() if type(m).__name__ == "Conv1D"}
    changes = {}
    for name, tensor in before.items():
        change = after[name] - tensor
        if float(change.abs().max()) > 1e-7:
            changes[name] = change.t() if name.rpartition(".")[0] in turned else change
    return own, changes


@pytest.mark.parametrize("case", PLANS, ids=lambda case: case.name)
def test_right_or_refused(bases, tmp_path, case):
    folder = save_case(case, bases[case.base], tmp_path / "adapter")
    own, wanted = None, {}
    said = {}
    for name, read in READERS.items():
        out = tmp_path / name
        try:
            write_for_engine(folder, out, engine=name)
        except RequestError as error:
            said[name] = str(error)
            assert not out.exists(), f"{name}: a folder is left"
            continue
        if own is None:
            own, wanted = change_of_peft(case, bases[case.base], folder)
        with torch.no_grad():
            got = {key: change for key, change in read(out, own).items() if float(change.abs().max()) > 1e-7}
        assert got.keys() == wanted.keys(), f"{name}: other matrices than PEFT's"
        for key, change in wanted.items():
            torch.testing.assert_close(
                got[key], change, rtol=1e-4, atol=2e-6, msg=lambda text, n=name, k=key: f"{n} {k}: {text}"
            )
    assert all("Instead:" in text for text in said.values())


def test_a_stored_matrix_that_is_not_left_of_this_base_is_refused(bases, tmp_path):
    case = next(case for case in PLANS if case.name == "init pissa, head")
    folder = save_case(case, bases[case.base], tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in tensors if name.endswith("base_layer.weight"))
    save_file({**tensors, name: 1.5 * tensors[name]}, folder / "adapter_model.safetensors")
    with pytest.raises(RequestError, match="something else than what is left of this base's"):
        write_for_engine(folder, tmp_path / "out", engine="lorax")
    assert not (tmp_path / "out").exists()


def test_a_verdict_of_right_is_right_as_it_stands(bases, tmp_path):
    """Adapters as PEFT saves them, judged by header alone: right there is PEFT's change by the engine's rule."""
    counted = 0
    for case in PLANS:
        if case.kind != "causal":
            continue
        folder = save_case(case, bases[case.base], tmp_path / case.name.replace(" ", "_"))
        header = read_adapter_header(folder)
        right = [
            n
            for n in ("vllm", "sglang", "tgi", "lorax", "tensorrt-llm")
            if ENGINES[n].verdict(header).verdict == "right"
        ]
        if not right:
            continue
        own, wanted = change_of_peft(case, bases[case.base], folder)
        for name in right:
            got = {key: c for key, c in READERS[name](folder, own).items() if float(c.abs().max()) > 1e-7}
            assert got.keys() == wanted.keys(), f"{case.name}, {name}"
            for key, change in wanted.items():
                torch.testing.assert_close(got[key], change, rtol=1e-4, atol=2e-6)
            counted += 1
    assert counted > 20
