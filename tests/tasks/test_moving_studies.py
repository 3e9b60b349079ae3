"""Studies of classifiers and of models that write a target, in which an arm moves its adapters inside its runs."""

from __future__ import annotations

import pytest
from tests.tasks.conftest import pairs, sentences, write

from loratlas.errors import SpecError
from loratlas.study.run_study import run_study
from loratlas.study.spec.spec_file import parse_spec

SHORT = {
    "name": "moving-tasks",
    "arms": {"full": "all:2", "early": {"placement": "auto", "signal": "random", "head": 4}},
    "reference": "full",
    "match": "params",
    "learning_rates": [9e-3],
    "tuning": {"seeds": 1, "rows": 8, "extensions": 0},
    "evaluation": {"seeds": 2, "rows": 8},
    "steps": 5,
    "batch_size": 4,
    "max_length": 32,
    "demonstration": True,
}
KINDS = {"bert": sentences, "t5": pairs}


def spec_of(kind, bases, folder, **arm):
    """A study of a tiny base, whose moving arm has these settings too."""
    rows = KINDS[kind]
    write(folder / "train.jsonl", rows(24))
    write(folder / "eval.jsonl", rows(9)[1:])
    data = {"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl")}
    arms = {**SHORT["arms"], "early": {**SHORT["arms"]["early"], **arm}}
    return parse_spec({**SHORT, "model": str(bases(kind)), "data": data, "arms": arms})


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_move_whatever_the_base_is_trained_to_do(kind, bases, tmp_path):
    result = run_study(spec_of(kind, bases, tmp_path), tmp_path / "out", workers=1).to_json()
    assert result["complete"]
    _, early = result["arms"]
    assert [[decision["step"] for decision in run["decisions"]] for run in early["moving"]] == [[4], [4]]
    assert all(run["moves"] for run in early["moving"])
    assert early["nll"] is not None


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_decided_is_refused_by_the_arms_name_before_anything_is_priced(kind, bases, tmp_path):
    events = []
    for changes, words in (
        ({"signal": "attention"}, "no attention pattern"),
        ({"placement": "scan"}, "scan"),
    ):
        arm = {"signal": None, "head": None, **changes} if "placement" in changes else changes
        spec = spec_of(kind, bases, tmp_path, **arm)
        with pytest.raises(SpecError, match=words) as caught:
            run_study(spec, tmp_path / "out", workers=1, on_event=events.append)
        assert caught.value.given.startswith("arms.early")
    assert events == []
    assert not (tmp_path / "out").exists()
