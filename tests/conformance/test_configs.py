"""Every config class of transformers, saved by transformers and read here, is what AutoConfig reads."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING, AutoConfig

from loratlas.errors import ModelError
from loratlas.models.config import load_config
from loratlas.models.quiet import quiet


def saved(model_type: str, folder: Path) -> bool:
    """Whether transformers makes and saves a default config of this type."""
    try:
        with quiet():
            CONFIG_MAPPING[model_type]().save_pretrained(folder)
    except Exception:
        # Types that need a timm or detectron backbone, or sub-configs, have no default.
        return False
    return True


def test_every_config_class_is_read_as_autoconfig_reads_it(tmp_path: Path):
    types = sorted(CONFIG_MAPPING)
    same, refused, unbuilt, wrong = 0, 0, [], []
    for model_type in types:
        folder = tmp_path / model_type
        if not saved(model_type, folder):
            unbuilt.append(model_type)
            continue
        try:
            with quiet():
                expected = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except Exception:
            expected = None
        try:
            result = load_config(folder)
        except ModelError:
            result = None
        if expected is None and result is None:
            refused += 1
        elif type(expected) is not type(result) or str(expected.to_dict()) != str(result.to_dict()):
            wrong.append(model_type)
        else:
            same += 1
    print(
        f"\nconfigs: {len(types)} types, {same} equal, {refused} refused by both, {len(unbuilt)} without a default"
    )
    assert wrong == []
    assert same > 700


@pytest.mark.parametrize(
    "number",
    ['{"__float__": "Infinity"}', "Infinity"],
    ids=["as transformers writes it", "as the Hub holds it"],
)
def test_infinite_numbers_in_a_config_are_read(tmp_path: Path, number: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        CONFIG_MAPPING["mamba2"](num_hidden_layers=2).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    data = json.loads(path.read_text())
    data["time_step_limit"] = [0.0, "HERE"]
    path.write_text(json.dumps(data).replace('"HERE"', number))
    assert list(load_config(tmp_path).time_step_limit) == [0.0, float("inf")]
    assert list(load_config(path).time_step_limit) == [0.0, float("inf")]
