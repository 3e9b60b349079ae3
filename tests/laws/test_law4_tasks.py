"""Law 4 where rows stand side by side: classifiers, each run with a head of its own, and sources with targets."""

from __future__ import annotations

import pytest
import torch
from tests.tasks.bases import LABELS, TARGETS, base, load, rows
from tests.training.fleets import alone, equals_its_runs_alone, losses

from loratlas.adapters.trained_heads import is_head
from loratlas.anatomy.read import read
from loratlas.errors import SettingsError
from loratlas.models.task import for_task
from loratlas.placement.plan import place
from loratlas.training.fleet.train_fleet import Fleet, Member
from loratlas.training.settings import Settings

TEXTS = ("all:4", "attention:2", "feedforward:3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bases")


def given(folder, model_type, task):
    """(base, its anatomy, rows)."""
    path = base(folder, model_type)
    return load(path, task), read(for_task(path, task, pad_id=0)), rows(model_type, task)


def member(anatomy, text, *, lr=4e-3, seed=0, **more):
    options = {"steps": 6, "batch_size": 4, "dtype": "float32", **more}
    return Member(rows=place(anatomy, text).rows, settings=Settings(lr=lr, seed=seed, **options))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("model_type", "task"), [("bert", LABELS), ("gpt2", LABELS), ("t5", TARGETS)])
def test_a_fleet_of_padded_runs_equals_its_runs_alone(folder, model_type, task):
    model, anatomy, data = given(folder, model_type, task)
    members = [
        member(
            anatomy,
            text,
            lr=1e-3 * 2**number,
            seed=number // 2,
            batch_size=3 + number % 2,
            micro_batch=2 if number == 1 else None,
            dropout=0.1 if number == 2 else 0.0,
            loraplus=4.0 if number == 0 else None,
            weight_decay=0.1 if number == 1 else 0.0,
            clip=None if number == 2 else 0.5,
        )
        for number, text in enumerate(TEXTS)
    ]
    fleet = equals_its_runs_alone(model, data, members, packed=False)
    heads = [{n: v for n, v in run.masters.named() if is_head(n)} for run in fleet.runs]
    assert all(bool(head) == bool(task.labels) for head in heads)
    # Each run moved a head of its own.
    assert all(not torch.equal(value, heads[1][name]) for name, value in heads[0].items())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_classifier_that_diverges_leaves_the_others_alone(folder):
    model, anatomy, data = given(folder, "bert", LABELS)
    good = [member(anatomy, "all:4"), member(anatomy, "attention:2", seed=1)]
    wild = member(anatomy, "all:2", lr=1e30, clip=None)
    first, diverged, second = Fleet(model, data, [good[0], wild, good[1]], packed=False).fit()
    assert diverged.diverged
    for one, mine in zip((first, second), good, strict=True):
        reference, _ = alone(model, data, mine, packed=False)
        torch.testing.assert_close(losses(one), losses(reference), rtol=1e-5, atol=0)


def test_a_matrix_that_all_examples_share_keeps_runs_apart(folder):
    """DeBERTa's relative positions, one table for all examples, go through matrices that can be adapted."""
    model, anatomy, data = given(folder, "deberta-v2", LABELS)
    with pytest.raises(SettingsError, match=r"\[1, .*not laid out as they are"):
        Fleet(model, data, [member(anatomy, "rel:2", seed=seed) for seed in range(2)], packed=False)
    Fleet(model, data, [member(anatomy, "all:2", seed=seed) for seed in range(2)], packed=False)
