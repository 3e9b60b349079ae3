"""Settings refuse what makes no sense, and say what to write instead."""

from __future__ import annotations

import math

import pytest

from loratlas.errors import SettingsError
from loratlas.training.optimizer import rate
from loratlas.training.settings import Settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": math.nan},
        {"lr": math.inf},
        {"lr": 0.0},
        {"lr": -1e-3},
        {"lr": "fast"},
        {"steps": 0},
        {"steps": -5},
        {"steps": 1.5},
        {"steps": True},
        {"epochs": 0},
        {"epochs": math.nan},
        {"batch_size": 0},
        {"micro_batch": 0},
        {"micro_batch": 17},
        {"clip": 0.0},
        {"clip": math.nan},
        {"weight_decay": -0.1},
        {"warmup": 1.0},
        {"warmup": -0.1},
        {"dropout": 1.0},
        {"betas": (0.9, 1.0)},
        {"seed": -1},
        {"seed": 0.5},
        {"schedule": "linear"},
        {"dtype": "float16"},
        {"packing": "maybe"},
        {"loraplus": 0.0},
        {"early_stop": 0},
        {"save_every": 0},
        {"report_to": ("mlflow",)},
        {"steps": 10, "epochs": 2},
    ],
    ids=str,
)
def test_refused(wrong):
    with pytest.raises(SettingsError) as caught:
        Settings(**wrong)
    name = next(iter(wrong))
    assert name in caught.value.given
    assert caught.value.instead


def test_epochs_count_the_subset():
    assert Settings(epochs=3, batch_size=4, subset=10).steps_for(100) == 8
    assert Settings().steps_for(33) == 3


def test_cosine_falls_to_nearly_nothing_and_constant_stays():
    settings = Settings(lr=2.0, warmup=0.1)
    rates = [rate(settings, step, 100) for step in range(100)]
    assert rates[9] == 2.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 2e-3
    flat = Settings(lr=2.0, warmup=0.1, schedule="constant")
    assert [rate(flat, step, 100) for step in (10, 50, 99)] == [2.0] * 3


def test_no_warmup_begins_at_the_top():
    assert rate(Settings(lr=0.5, warmup=0.0), 0, 10) == 0.5
