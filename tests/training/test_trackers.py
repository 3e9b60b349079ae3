"""TensorBoard through transformers' callback: the file is there and holds the run's numbers."""

from __future__ import annotations

import importlib.util

import pytest
from tests.training.small import adapted, encoded

from loratlas.errors import SettingsError
from loratlas.training.loop import fit
from loratlas.training.settings import Settings

FAST = {"steps": 4, "lr": 1e-2, "batch_size": 4, "dtype": "float32"}


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard(tmp_path, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    settings = Settings(**FAST, report_to=("tensorboard",), evaluate_every=2)
    result = fit(adapted(), encoded(), settings, evaluate=encoded(4, seed=1), out=tmp_path, packed=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert list((tmp_path / "logs").rglob("events.out.tfevents.*"))
    outcome = EventAccumulator(str(next((tmp_path / "logs").rglob("events.out.tfevents.*")).parent))
    outcome.Reload()
    losses = outcome.Scalars("train/loss")
    assert [scalar.step for scalar in losses] == [1, 2, 3, 4]
    assert [scalar.value for scalar in losses] == pytest.approx(
        [point.nll for point in result.curve], rel=1e-5
    )
    assert [scalar.step for scalar in outcome.Scalars("eval/loss")] == [2, 4]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_missing_package_is_named():
    with pytest.raises(SettingsError, match=r"loratlas\[wandb\]"):
        fit(adapted(), encoded(), Settings(**FAST, report_to=("wandb",)), packed=True)
