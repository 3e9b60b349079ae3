"""A config is a stranger's text: sizes that no model has end with a sentence, before anything is built."""

from __future__ import annotations

import json

import pytest
from tests.tiny import tiny_config
from transformers import CONFIG_MAPPING, LlamaConfig

from loratlas.anatomy.read import read
from loratlas.errors import ModelError
from loratlas.models import limits


def _refused(tmp_path, **changes) -> ModelError:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(tiny_config("llama").to_dict() | changes))
    with pytest.raises(ModelError) as caught:
        read(file)
    return caught.value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 100_000}, "num_hidden_layers is 100000, more than the 1,024 layers"),
        ({"num_hidden_layers": 10**9}, "more than the 1,024 layers"),
        ({"vision_config": {"depth": 10**6}}, "depth is 1000000"),
        ({"vocab_size": 10**30}, "vocab_size is a number of 100 bits"),
        ({"layer_types": ["full_attention"] * (2**20 + 1)}, "layer_types has 1,048,577 entries"),
    ],
)
def test_sizes_that_no_model_has_are_refused_before_transformers_sees_them(
    tmp_path, monkeypatch, changes, words
):
    def never(*_args, **_kwargs):
        raise AssertionError("transformers was asked")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", never)
    assert words in _refused(tmp_path, **changes).found


def test_a_config_that_was_made_in_python_is_bounded_as_well():
    config = tiny_config("llama")
    config.num_hidden_layers = 5_000
    with pytest.raises(ModelError, match="more than the 1,024 layers"):
        read(config)


def test_parameters_are_counted_while_a_model_is_built(monkeypatch):
    monkeypatch.setattr(limits, "MOST_PARAMETERS", 20)
    with pytest.raises(ModelError, match="more than the 20 tensors"):
        read(tiny_config("llama"))
    monkeypatch.setattr(limits, "MOST_PARAMETERS", 200)
    assert read(tiny_config("llama")).layers == 3


def test_brackets_without_end_are_no_config(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": ' + "[" * 200_000)
    with pytest.raises(ModelError, match="not readable as JSON"):
        read(tmp_path / "config.json")


def test_usual_configs_of_all_types_are_within_bounds():
    checked = 0
    for cls in CONFIG_MAPPING.values():
        try:
            data = cls().to_dict()
        except Exception:  # some types have no usual config
            continue
        limits.check_sizes(data, cls.__name__)
        checked += 1
    assert checked > 300
    limits.check_sizes(LlamaConfig(num_hidden_layers=1_000, max_position_embeddings=10**7).to_dict(), "deep")
