"""The embedded base: complete, of the size that its card states, and without a trace of where it was made."""

from __future__ import annotations

import json
import re

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from loratlas import demo


def test_the_base_loads_and_has_the_parameters_of_its_card() -> None:
    model = AutoModelForCausalLM.from_pretrained(demo.base_path())
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_392_960
    card = (demo.base_path() / "README.md").read_text(encoding="utf-8")
    assert "8,392,960" in card
    assert not re.search(r"\.\./|/home|/work|/tmp", card)


def test_the_base_reads_english() -> None:
    """Plain English is far likelier to it than the same tokens shuffled: the weights are the trained ones."""
    model = AutoModelForCausalLM.from_pretrained(demo.base_path(), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(demo.base_path())
    ids = tokenizer(
        "The people of the village went down to the river and came back in the evening.", return_tensors="pt"
    ).input_ids
    shuffled = ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        right, wrong = (float(model(x, labels=x).loss) for x in (ids, shuffled))
    assert right < 5 < wrong


def test_the_config_names_no_place() -> None:
    config = json.loads((demo.base_path() / "config.json").read_text(encoding="utf-8"))
    assert "_name_or_path" not in config
