"""The header alone says of every PEFT adapter what PEFT makes of it: sites, ranks, scales, stacks of experts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft import PeftModel
from tests.conformance.adapter_cases import CASES, KINDS, save_bases, save_case

from loratlas.adapters.peft_check import expected_warnings
from loratlas.adapters.peft_targets import adapted
from loratlas.errors import ModelError
from loratlas.models.quiet import quiet
from loratlas.serving.adapter_header import EXPERTS, pattern_value, read_adapter_header

BY_NAME = {case.name: case for case in CASES}
READ = [
    "plain",
    "rslora",
    "dora",
    "all linear",
    "expression",
    "rank pattern",
    "alpha pattern",
    "fan in fan out",
    "embedding adapted",
    "head adapted",
    "experts",
    "sequence classes, decoder",
    "targets",
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_bases(tmp_path_factory.mktemp("bases"))


@pytest.mark.parametrize("name", READ)
def test_sites_ranks_and_scales_are_those_of_peft(bases, tmp_path, name):
    case = BY_NAME[name]
    folder = save_case(case, bases[case.base], tmp_path / "a")
    header = read_adapter_header(folder)
    with quiet(), expected_warnings():
        base = KINDS[case.kind].from_pretrained(bases[case.base], **case.options)
        layers = adapted(PeftModel.from_pretrained(base, str(folder)))
    by_name = {f"{p.module}.{p.parameter}" if p.kind == EXPERTS else p.module: p for p in header.pairs}
    assert by_name.keys() == layers.keys()
    for key, layer in layers.items():
        assert by_name[key].rank == layer.r["default"], key
        assert by_name[key].scale == pytest.approx(layer.scaling["default"], rel=1e-12), key
        assert by_name[key].experts == getattr(layer, "num_experts", 1), key
    assert header.base is not None
    assert header.model_type == base.config.model_type


def test_the_first_pattern_that_fits_wins_as_in_peft():
    from peft.utils.other import get_pattern_key

    patterns = {"q": 1, "attn.q_proj": 2, r".*\.3\..*": 3, "^model$": 4}
    for name in ("q", "a.q", "b.attn.q_proj", "x.3.y", "model", "a.model"):
        key = get_pattern_key(list(patterns), name)
        assert pattern_value(patterns, name, 0) == patterns.get(key, 0), name


def test_what_is_no_adapter_is_a_sentence(bases, tmp_path):
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        read_adapter_header(tmp_path)
    folder = save_case(BY_NAME["plain"], bases["llama"], tmp_path / "a")
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-5])
    with pytest.raises(ModelError, match=r"cut off|bytes"):
        read_adapter_header(folder)
    weights.write_bytes((1 << 62).to_bytes(8, "little") + whole[8:])
    with pytest.raises(ModelError):
        read_adapter_header(folder)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match="a pickle"):
        read_adapter_header(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"rank_pattern": {"(a+)+b": 4}}))
    with pytest.raises(ModelError, match="never end"):
        read_adapter_header(folder)
    (folder / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3"}))
    with pytest.raises(ModelError, match="IA3"):
        read_adapter_header(folder)


def test_a_factor_without_its_partner(bases, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save_case(BY_NAME["plain"], bases["llama"], tmp_path / "a")
    state = load_file(folder / "adapter_model.safetensors")
    del state["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    save_file(state, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="without"):
        _ = read_adapter_header(folder).pairs
