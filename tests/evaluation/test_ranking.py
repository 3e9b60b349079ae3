"""Which pairs change places with the definition: exactly, and what rules it out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loratlas.errors import DataError
from loratlas.evaluation.definitions import Definition, Evidence, value
from loratlas.evaluation.ranking import disagreements, shift_bound
from loratlas.evaluation.table import Table
from loratlas.evaluation.tokens import Scores

OTHERS = [
    Definition(name="example", aggregate="example"),
    Definition(name="batch", aggregate="batch", batch_size=2),
    Definition(name="ppl", aggregate="log_mean_exp"),
    Definition(name="median", aggregate="median"),
]


def arm(n, means):
    n = np.asarray(n)
    scores = Scores(example=np.arange(len(n)), n=n, nll=n * np.asarray(means, dtype=np.float64))
    return Table.of_scores(scores)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 30))
def test_a_flip_is_a_flip_of_the_values(seed, size):
    random = np.random.default_rng(seed)
    n = random.integers(1, 200, size)
    arms = {name: arm(n, random.gamma(2, 1, size)) for name in "abc"}
    by = Definition(name="token_mean")
    for found in disagreements(arms, OTHERS):
        other = next(d for d in OTHERS if d.name == found.other)

        def told(d, name):
            return value(d, Evidence(tables={"reference": arms[name]}))

        plain = told(by, found.first) - told(by, found.second)
        swapped = told(other, found.first) - told(other, found.second)
        assert found.difference == pytest.approx(plain, abs=1e-12)
        assert found.difference + found.shift == pytest.approx(swapped, abs=1e-9)
        if abs(plain * swapped) > 1e-12:
            assert found.flips == (plain * swapped < 0)
        if found.bound is not None:
            assert abs(found.shift) <= found.bound + 1e-12
            if abs(found.difference) > found.bound + 1e-12:
                assert not found.flips
    assert len(disagreements(arms, OTHERS)) == 3 * len(OTHERS)


@pytest.mark.parametrize(
    ("name", "n", "one", "other"),
    [
        ("example", [10, 10, 100], [1.0, 1.0, 2.0], [1.4, 1.4, 1.9]),
        ("batch", [1, 1, 50, 50], [1.0, 1.0, 2.0, 2.0], [1.5, 1.5, 1.9, 1.9]),
        ("ppl", [10, 10], [1.0, 3.0], [2.05, 2.05]),
        ("median", [10, 10, 10], [1.0, 1.0, 4.0], [1.9, 1.9, 1.9]),
    ],
)
def test_the_constructed_examples_of_the_page(name, n, one, other):
    """docs/method/metrics.md shows these pairs; each changes places."""
    (found,) = [
        d for d in disagreements({"one": arm(n, one), "other": arm(n, other)}, OTHERS) if d.other == name
    ]
    assert found.flips


def test_both_bounds_are_reached():
    apart = np.array([0.25, -0.25, 0.25, -0.25])
    delta = np.array([1.0, -1.0, 1.0, -1.0])
    assert shift_bound(apart, delta) == pytest.approx(float((apart * delta).sum()))
    one = np.array([0.3, -0.3, 0.0, 0.0, 0.0, 0.0, 0.0])
    far = np.array([1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert shift_bound(one, far) == pytest.approx(float((one * far).sum()))
    # Half the ‖v − w‖₁ times the range is the smaller one where few examples carry the weight.
    skewed = np.array([0.3, -0.05, -0.05, -0.05, -0.05, -0.05, -0.05])
    wide = np.array([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert shift_bound(skewed, wide) == pytest.approx(0.3)


def test_arms_that_cannot_be_compared():
    with pytest.raises(DataError, match="no pair"):
        disagreements({"a": arm([1], [1.0])}, OTHERS)
    with pytest.raises(DataError, match="not judged on the same tokens"):
        disagreements({"a": arm([1, 2], [1.0, 1.0]), "b": arm([1, 3], [1.0, 1.0])}, OTHERS[:1])
