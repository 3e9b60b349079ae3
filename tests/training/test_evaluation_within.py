"""Evaluation within a run prepares the model once: no module is scanned or swapped for a batch."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from tests.training.small import adapted, encoded

from loratlas.adapters.layers import lean_lora
from loratlas.evaluation import token_scorer
from loratlas.training.loop import fit
from loratlas.training.settings import Settings


def work_of_evaluations(monkeypatch: pytest.MonkeyPatch, rows: int) -> tuple[int, Counter[str]]:
    """Batches that two evaluations took, and what was done to the model meanwhile."""
    done: Counter[str] = Counter()
    batches, inside = 0, False
    walk, run_pass, one_batch = (
        torch.nn.Module.named_modules,
        token_scorer.run_pass,
        token_scorer._score_batch,
    )

    def walked(module, memo=None, prefix="", remove_duplicate=True):
        if inside and not prefix and module._modules:
            done["scans of the modules"] += 1
        return walk(module, memo, prefix, remove_duplicate)

    def swapped(name):
        original = getattr(lean_lora, name)

        def function(model):
            if inside:
                done[f"{name}: layers swapped"] += 1
            return original(model)

        return function

    def passed(*args, **kwargs):
        nonlocal inside
        inside = True
        try:
            return run_pass(*args, **kwargs)
        finally:
            inside = False

    def scored(*args):
        nonlocal batches
        batches += 1
        return one_batch(*args)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Module, "named_modules", walked)
        for name in ("faster", "slower"):
            patch.setattr(lean_lora, name, swapped(name))
        patch.setattr("loratlas.evaluation.score.run_pass", passed)
        patch.setattr(token_scorer, "_score_batch", scored)
        settings = Settings(steps=2, lr=1e-3, batch_size=4, dtype="float32", compile="off", evaluate_every=1)
        fit(adapted(), encoded(8), settings, evaluate=encoded(rows, seed=1))
    return batches, done


def test_evaluation_within_a_run_prepares_the_model_once(monkeypatch):
    few, prepared = work_of_evaluations(monkeypatch, 8)
    many, more = work_of_evaluations(monkeypatch, 400)
    assert (few, prepared["scans of the modules"] > 0) == (2, True)
    assert many >= 4 * few
    assert more == prepared
    assert not {name for name in more if "swapped" in name}
