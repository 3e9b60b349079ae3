"""Every type that transformers maps to a model for text: read whole, or with a list of what could not be told."""

from __future__ import annotations

import pytest
from tests import zoo
from transformers.models.auto import modeling_auto as auto

from loratlas.anatomy.load import meta_model
from loratlas.anatomy.read import read

TYPES = sorted(
    {
        *auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        *auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        *auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        *auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    }
)
# Configs that the generic small sizes do not build, or that need a package which is not installed.
UNBUILT = [
    "canine",
    "dots3_note",
    "gemma3n",
    "gemma4_assistant",
    "gemma4_unified_assistant",
    "layoutlmv2",
    "nemo_speechlm",
    "qwen4_exp",
    "qwen4_exp_text",
]
# Types of which a part is unresolved.
IN_PART = [
    "axk1",
    "convbert",
    "deepseek_v3",
    "deepseek_v4",
    "doge",
    "granitemoehybrid",
    "inkling2_text",
    "inkling_text",
    "lilt",
    "longcat_flash",
    "mistral4",
    "perceiver",
    "rwkv",
    "youtu",
    "zamba2",
]


@pytest.mark.parametrize("model_type", [name for name in TYPES if name not in UNBUILT])
def test_every_matrix_of_a_type_is_listed_once_and_known(model_type):
    config = zoo.small(model_type)
    anatomy = read(config)
    listed = [site.path for site in anatomy] + [item.path for item in anatomy.unresolved]
    every = [n for n, v in meta_model(config).named_parameters(remove_duplicate=False) if v.ndim >= 2]
    assert sorted(listed) == sorted(every)
    assert bool(anatomy.unresolved) == (model_type in IN_PART)
    assert all(item.reason for item in anatomy.unresolved)
