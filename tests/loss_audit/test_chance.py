"""A definition has reproduced a number only where chance would not have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_read_logs import evidence

from loratlas.loss_audit.chance import ALPHA, NEIGHBOURHOOD, accepted_tolerances, covered_length
from loratlas.loss_audit.definitions import REFERENCE, Definition, LossEvidence, value
from loratlas.loss_audit.log_numbers import Log, Number
from loratlas.loss_audit.match_logs import explain


def many_passes(rows: int = 40) -> LossEvidence:
    """As many tables as an audit makes at most, each a little different."""
    known = evidence(rows)
    reference = known.tables[REFERENCE]
    tables = dict(known.tables)
    for index, name in enumerate(("off", "right", "bfloat16", "ahead", "left", "cut", "windows")):
        random = np.random.default_rng(index)
        moved = reference.nll * random.normal(1 + 0.01 * index, 0.03, len(reference.nll))
        tables[name] = replace(reference, nll=moved, condition=name)
    return LossEvidence(tables=tables, texts=known.texts)


def log_of(values: list[float], rounding: float, tool: str = "transformers Trainer") -> Log:
    numbers = [
        Number(name=f"n{i}", value=v, kind="loss", where="/", rounding=rounding) for i, v in enumerate(values)
    ]
    return Log(tool=tool, path=Path("x.json"), numbers=tuple(numbers))


@pytest.mark.parametrize("rounding", [0.0, 5e-5, 5e-4, 5e-3])
@pytest.mark.parametrize("tool", ["transformers Trainer", "lm-evaluation-harness"])
def test_of_300_random_numbers_at_most_three_are_reproduced(rounding, tool):
    known = many_passes()
    loss = value(Definition(name="token_mean"), known)
    random = np.random.default_rng(int(rounding * 1e6))
    result = explain(
        log_of((loss * random.uniform(0.9, 1.1, 300)).tolist(), rounding, tool), known, rough=["bfloat16"]
    )
    assert sum(one.verdict == "reproduced" for one in result) <= 3
    assert max(one.tried for one in result) > 200, "there were enough definitions to be fooled by"


@pytest.mark.parametrize("size", [2, 8, 16])
def test_what_the_tool_prints_is_reproduced_all_the_same(size):
    """At full precision, and at four digits where the batch size is known."""
    known = many_passes()
    given = value(Definition(name="b", aggregate="batch", batch_size=size), known)
    (exact,) = explain(log_of([given * (1 + 3e-6)], 0.0), known, rough=["bfloat16"])
    (few,) = explain(log_of([round(given, 3)], 5e-4), known, rough=["bfloat16"], batch_sizes=[size])
    for one in (exact, few):
        assert one.verdict == "reproduced"
        assert one.matches[0].definition.batch_size == size


def test_too_few_digits_are_consistent_with_anything():
    known = many_passes()
    (one,) = explain(log_of([round(value(Definition(name="token_mean"), known), 1)], 0.05), known)
    assert one.verdict == "consistent"
    assert len(one.matches) > 10
    assert one.could_be


@given(st.lists(st.floats(1.5, 2.5), min_size=1, max_size=300), st.integers(0, 2**31), st.floats(1e-7, 1e-1))
@settings(max_examples=60, deadline=None)
def test_accepted_intervals_cover_at_most_alpha(values, seed, precision):
    random = np.random.default_rng(seed)
    levels = random.integers(0, 6, len(values)).tolist()
    reach = accepted_tolerances(2.0, values, [precision] * len(values), levels)
    assert (reach <= precision).all()
    v = np.array(values)
    half = 2.0 * NEIGHBOURHOOD
    covered = covered_length(v - reach, v + reach, 2 - half, 2 + half)
    assert covered <= ALPHA * 2 * half * (1 + 1e-9)


def test_definitions_of_one_value_count_once():
    one = accepted_tolerances(2.0, [2.0], [4e-5], [0])
    same = accepted_tolerances(2.0, [2.0] * 500, [4e-5] * 500, [0] * 500)
    np.testing.assert_allclose(same, one[0])
