"""vLLM's and SGLang's own parsing of adapters, read from their wheels, on folders that were written for them.

`make engine-sources` fetches the wheels and keeps the files that are read here. Their imports of the rest of the engine
(a logger, a class that only types name) are stood in for; what parses a config, matches a pattern, names a tensor or
computes a scale is the engine's code.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import logging
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from tests.tiny import tiny_model

from loratlas.adapters.peft_check import expected_warnings
from loratlas.serving.engine_export import write_for_engine

ROOT = Path(os.environ.get("LORATLAS_ENGINE_SOURCES", Path(__file__).parents[2] / ".venv" / "engine-sources"))


class _Logger(logging.Logger):
    def info_once(self, *words: Any) -> None:
        self.info(*words)


@pytest.fixture
def sources(monkeypatch):
    """``sources("vllm/lora/peft_helper.py")``: a file of an engine as a module, or a skip that says how to get it."""
    stand_ins = {
        "vllm.logger": {"init_logger": _Logger},
        "vllm.config.lora": {"LoRAConfig": object},
    }

    def load(relative: str) -> Any:
        path = ROOT / relative
        if not path.is_file():
            pytest.skip(f"needs {relative} of its wheel, which `make engine-sources` fetches")
        for name, content in stand_ins.items():
            module = types.ModuleType(name)
            vars(module).update(content)
            monkeypatch.setitem(sys.modules, name, module)
        spec = importlib.util.spec_from_file_location(f"engine_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


def function_of(relative: str, name: str) -> Any:
    """One function of a file whose imports need the whole engine."""
    path = ROOT / relative
    if not path.is_file():
        pytest.skip(f"needs {relative} of its wheel, which `make engine-sources` fetches")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    result = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
    space: dict[str, Any] = {"WeightsMapper": object, "logger": logging.getLogger(name)}
    exec(compile(ast.Module([result], []), str(path), "exec"), space)
    return space[name]


OPTIONS = {
    "uniform": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]},
    "mixed": {
        "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"down_proj": 4}, "alpha_pattern": {"down_proj": 2, r"layers\.1\.self_attn\.q_proj": 40},
    },
    "rslora": {"r": 4, "lora_alpha": 8, "target_modules": ["v_proj"], "use_rslora": True},
    "layers": {"r": 4, "lora_alpha": 8, "target_modules": ["o_proj", "up_proj"], "layers_to_transform": [1]},
    "expression": {"r": 4, "lora_alpha": 8, "target_modules": r".*layers\.[02]\.(self_attn\.q|mlp\.down)_proj"},
}  # fmt: skip


@pytest.fixture(params=OPTIONS)
def adapter(request, tmp_path):
    """A base's folder, an adapter's folder, and PEFT's change of every module."""
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    with expected_warnings():
        peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **OPTIONS[request.param]))
    changes = {}
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
        for name, module in peft.named_modules():
            if hasattr(module, "get_delta_weight") and hasattr(module, "lora_A"):
                changes[name.removeprefix("base_model.model.")] = module.get_delta_weight("default")
    peft.save_pretrained(tmp_path / "adapter")
    return tmp_path, changes


def factors(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_vllm_reads_what_was_written_for_it(sources, adapter):
    helper_of = sources("vllm/lora/peft_helper.py").PEFTHelper
    name_of = function_of("vllm/lora/utils.py", "parse_fine_tuned_lora_name")
    folder, changes = adapter
    write_for_engine(folder / "adapter", folder / "out", engine="vllm", base=folder / "base")
    helper = helper_of.from_local_dir(str(folder / "out"), None)
    helper.validate_legal(types.SimpleNamespace(max_lora_rank=512))
    by_name: dict[str, dict[bool, torch.Tensor]] = {}
    for name, tensor in factors(folder / "out").items():
        module, is_a = name_of(name)[:2]
        by_name.setdefault(module, {})[is_a] = tensor
    served = {}
    for module, both in by_name.items():
        rank, scale = helper.get_rank_and_scaling(module)
        assert both[True].shape[0] == both[False].shape[1] == rank
        served[module] = scale * (both[False] @ both[True])
    compare(served, changes)


def test_vllm_reads_peft_s_own_folder_as_the_table_says(sources, adapter):
    from loratlas.api.check_adapter import check

    helper_of = sources("vllm/lora/peft_helper.py").PEFTHelper
    folder, changes = adapter
    helper = helper_of.from_local_dir(str(folder / "adapter"), None)
    tensors = factors(folder / "adapter")
    served = {}
    for module in changes:
        A, B = (tensors[f"base_model.model.{module}.lora_{letter}.weight"] for letter in "AB")
        served[module] = helper.get_rank_and_scaling(module)[1] * (B @ A)
    verdict = check(folder / "adapter", ["vllm"], base=str(folder / "base")).engines[0].verdict
    assert verdict == "right"
    compare(served, changes)


@pytest.mark.parametrize(
    "fields",
    [{"use_dora": True}, {"lora_bias": True}, {"bias": "all"}, {"init_lora_weights": "pissa"}, {"r": 1024},
     {"modules_to_save": ["lm_head"]}],
    ids=lambda fields: next(iter(fields)),
)  # fmt: skip
def test_vllm_refuses_what_the_table_says(sources, fields):
    helper_of = sources("vllm/lora/peft_helper.py").PEFTHelper
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]} | fields
    with pytest.raises(ValueError, match=r"support|rank"):
        helper_of.from_dict(config).validate_legal(types.SimpleNamespace(max_lora_rank=512))


def test_sglang_reads_what_was_written_for_it(sources, adapter):
    config_of = sources("sglang/srt/lora/lora_config.py").LoRAConfig
    folder, changes = adapter
    write_for_engine(folder / "adapter", folder / "out", engine="sglang", base=folder / "base")
    config = config_of(path=str(folder / "out"))
    assert isinstance(config.target_modules, list)
    assert not config.use_dora
    scale = config.lora_alpha / config.r  # `LoRAAdapter.scaling` in sglang/srt/lora/lora.py
    text = (ROOT / "sglang/srt/lora/lora.py").read_text(encoding="utf-8")
    assert "self.config.lora_alpha / self.config.r" in text
    tensors = factors(folder / "out")
    served = {}
    for name, A in tensors.items():
        if name.endswith(".lora_A.weight"):
            assert A.shape[0] == config.r
            module = name.removesuffix(".lora_A.weight").removeprefix("base_model.model.")
            served[module] = scale * (tensors[name.replace("lora_A", "lora_B")] @ A)
    compare(served, changes)


def compare(served: dict[str, torch.Tensor], changes: dict[str, torch.Tensor]) -> None:
    """Every module's change is PEFT's; what is there beyond is zero."""
    assert changes.keys() <= served.keys()
    for module, change in served.items():
        wanted = changes.get(module, torch.zeros_like(change))
        torch.testing.assert_close(change, wanted, rtol=1e-5, atol=1e-6, msg=module)


def test_versions_are_those_of_the_table():
    from loratlas.serving.engine_registry import ENGINES

    kept = ROOT / "versions.json"
    if not kept.is_file():
        pytest.skip("needs the wheels' versions, which `make engine-sources` fetches")
    versions = json.loads(kept.read_text(encoding="utf-8"))
    for name in ("vllm", "sglang"):
        assert versions[name].startswith(ENGINES[name].version)
