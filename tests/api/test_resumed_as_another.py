"""Resuming as another run than the one that was stopped: the sentence names what was typed differently."""

from __future__ import annotations

from pathlib import Path

import pytest

import loratlas
from loratlas.errors import OutputError

BASES = Path(__file__).parents[2] / "bases"
ASKED = {"placement": "auto", "budget": "like=all:2", "signal": "random", "head": 4}
SHORT = {"steps": 6, "lr": 0.02, "batch_size": 4, "max_length": 48, "limit": 24}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The folder of a run with moves, its last checkpoint in it."""
    out = tmp_path_factory.mktemp("run") / "out"
    loratlas.train("demo:llama-mini", "demo:facts-300", out=out, **ASKED, **SHORT)
    return out


OTHERS = {
    "budget": ({"budget": "like=all:3"}, "budget was 'like=all:2', now 'like=all:3'"),
    "no budget": ({"budget": None}, "budget was 'like=all:2', now none"),
    "placement": (
        {"placement": "all:2", "budget": None, "signal": None, "head": None},
        "placement was 'auto', now 'all:2'; budget was 'like=all:2', now none",
    ),
    "signal": ({"signal": "energy"}, "hooks.placement.policy was 'random', now 'energy'"),
    "lr": ({"lr": 0.03, "placement": "auto"}, "settings.lr was 0.02, now 0.03"),
}


@pytest.mark.parametrize(("changes", "said"), OTHERS.values(), ids=OTHERS)
def test_what_was_typed_is_what_is_named(begun, changes, said):
    with pytest.raises(OutputError) as caught:
        loratlas.train(
            "demo:llama-mini", "demo:facts-300", out=begun, resume=True, **{**ASKED, **SHORT, **changes}
        )
    assert caught.value.found == f"it belongs to another run: {said}"


def test_another_model_is_named_before_its_sites(begun):
    other = str(BASES / "gpt2-mini")
    with pytest.raises(OutputError) as caught:
        loratlas.train(other, "demo:facts-300", out=begun, resume=True, **ASKED, **SHORT)
    assert caught.value.found == f"it belongs to another run: model was 'demo:llama-mini', now {other!r}"


def test_the_same_placement_in_other_words_is_the_same_run(begun):
    again = loratlas.train(
        "demo:llama-mini",
        "demo:facts-300",
        out=begun,
        resume=True,
        **{**ASKED, "budget": "like=all:2!"},
        **SHORT,
    )
    assert again.steps == SHORT["steps"]
