"""Law 3 on real anatomies: spent ≤ budget, no further rank fits, a larger budget never spends less."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import TYPES, tiny_anatomy, tiny_config

from loratlas.errors import BudgetError
from loratlas.placement.plan import place


@pytest.mark.parametrize("model_type", TYPES)
@settings(deadline=None, max_examples=15)
@given(
    st.sampled_from(["all", "attention", "feedforward@top/2"]), st.integers(1, 40_000), st.integers(0, 4_000)
)
def test_spent_within_one_step_and_monotone(model_type, text, amount, more):
    anatomy = tiny_anatomy(model_type)
    least = place(anatomy, f"{text}:1").trainable
    if amount < least:
        with pytest.raises(BudgetError, match=f"params={least}"):
            place(anatomy, text, budget=f"params={amount}")
        return
    plan = place(anatomy, text, budget=f"params={amount}")
    assert plan.trainable <= amount
    assert all(
        plan.trainable + row.site.lora_parameters(1) > amount
        for row in plan.rows
        if row.rank < row.site.max_rank
    )
    assert plan.trainable <= place(anatomy, text, budget=f"params={amount + more}").trainable


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "phi", "falcon"])
def test_time_is_monotone_too(model_type):
    from loratlas.placement.budget import cost_of_ranks

    anatomy = tiny_anatomy(model_type)
    spent = []
    for reference in range(1, 8):
        plan = place(anatomy, "all", budget=f"time=all:{reference}")
        assert {row.rank for row in plan.rows} == {reference}
        half = place(anatomy, "all@top/2", budget=f"time=all:{reference}")
        spent.append(cost_of_ranks(anatomy, half.ranks, "time"))
        assert spent[-1] <= cost_of_ranks(anatomy, plan.ranks, "time")
    assert spent == sorted(spent)


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_memory_is_spent_and_monotone(model_type):
    from loratlas.cost.peak_memory import PeakMemory
    from loratlas.training.settings import Settings

    anatomy, config = tiny_anatomy(model_type), tiny_config(model_type)
    peak = PeakMemory.of_step(config, anatomy, Settings(dtype="float32", batch_size=2), length=24)
    spent = []
    for reference in (1, 3):
        plan = place(anatomy, "all", budget=f"memory=all:{reference}", memory=peak)
        assert {row.rank for row in plan.rows} == {reference}
        part = place(anatomy, "attention", budget=f"memory=all:{reference}", memory=peak)
        assert peak(part.ranks) <= peak(plan.ranks)
        more = {path: rank + 1 for path, rank in part.ranks.items()}
        assert all(rank <= anatomy.site(path).max_rank for path, rank in more.items())
        assert peak(more) > peak(plan.ranks)
        spent.append(peak(part.ranks))
    assert spent == sorted(spent)
