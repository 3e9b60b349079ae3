"""What a memory budget is measured by: the peak of a run, with all that the run keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.tiny import tiny_config, tiny_model
from tests.training.small import wrap

from loratlas.adapters.attach import attach
from loratlas.anatomy.read import read
from loratlas.cost.dry_run import even_rows
from loratlas.cost.peak_memory import PeakMemory
from loratlas.placement.plan import place
from loratlas.training.loop import fit
from loratlas.training.settings import Settings

SETTINGS = Settings(steps=4, batch_size=4, dtype="float32", compile="off")


@pytest.mark.parametrize("rows", [8, 64])
def test_states_that_a_run_keeps_count(rows):
    """A top-layer placement of a run that sees its rows twice: the budget is held against what the run takes."""
    config = tiny_config("llama")
    anatomy = read(config)
    plan = place(anatomy, "all@top/2:4")
    data = wrap(list(even_rows(rows, 24)))
    settings = replace(SETTINGS, steps=2 * rows // 4)
    result = fit(attach(plan.rows, tiny_model("llama")), data, settings, packed=True)
    assert result.kept_layers > 0
    peak = PeakMemory.of_run(config, anatomy, data, settings)
    assert peak(plan.ranks) == pytest.approx(result.peak_bytes, rel=0.03)
    once = PeakMemory.of_run(config, anatomy, data, replace(settings, steps=rows // 4))
    states = rows * 24 * config.hidden_size * 4
    assert peak(plan.ranks) - once(plan.ranks) > states / 2


def test_rows_of_a_subset_are_those_that_are_kept():
    config = tiny_config("llama")
    anatomy = read(config)
    ranks = place(anatomy, "all@top/2:4").ranks
    data = wrap(list(even_rows(64, 24)))
    whole, part = (
        PeakMemory.of_run(config, anatomy, data, replace(SETTINGS, steps=32, subset=subset))(ranks)
        for subset in (None, 8)
    )
    assert whole - part > 50 * 24 * config.hidden_size * 4


def test_a_step_of_rows_that_come_once_is_that_of_a_run_of_them():
    config = tiny_config("llama")
    anatomy = read(config)
    ranks = place(anatomy, "all:2").ranks
    settings = replace(SETTINGS, steps=1)
    run = PeakMemory.of_run(config, anatomy, wrap(list(even_rows(4, 24))), settings)
    assert run(ranks) == PeakMemory.of_step(config, anatomy, settings, length=24)(ranks)
