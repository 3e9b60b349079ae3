"""Arms that decide by attention: read on bases whose patterns can be seen, refused on others."""

from __future__ import annotations

import pytest
from tests.study.test_moving_arms import SPEC
from transformers import Gemma2Config, LlamaConfig

from loratlas.cost.dry_run import as_step, even_rows
from loratlas.errors import SpecError
from loratlas.placement.plan import place
from loratlas.study.inputs.arm_checks import check_patterns
from loratlas.study.spec.spec_file import parse_spec
from loratlas.training.settings import Settings

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 96,
}


def checked(config, signal, scanned=()):
    arms = {"full": "all:1", "moved": {"placement": "auto", "signal": signal, "head": 4}}
    spec = parse_spec(SPEC | {"arms": arms})
    plans = {name: place(config, "all:1") for name in arms}
    check_patterns(spec, plans, scanned, config, as_step(even_rows(3, 8)), Settings(lr=1e-3))


def test_patterns_of_a_plain_attention_are_seen():
    checked(LlamaConfig(**SIZES), "attention")


def test_patterns_under_a_softcap_are_not():
    capped = Gemma2Config(**SIZES, head_dim=8)
    with pytest.raises(SpecError, match=r"gemma2 for causal.*no attention pattern") as caught:
        checked(capped, "attention")
    assert caught.value.given == "arms.moved.signal: attention"
    checked(capped, "weighted")
    checked(capped, "attention", scanned=("moved",))  # a scan of before the signal was asked for
