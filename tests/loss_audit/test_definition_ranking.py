"""Which pairs change places with the definition: exactly, and what rules it out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loratlas.errors import DataError
from loratlas.evaluation.score import Scores
from loratlas.loss_audit.definition_ranking import disagreements, range_bound, shift_bound
from loratlas.loss_audit.definitions import Definition, LossEvidence, value
from loratlas.loss_audit.text_units import Texts
from loratlas.loss_audit.token_table import LossTable

OTHERS = [
    Definition(name="example", aggregate="example"),
    Definition(name="batch", aggregate="batch", batch_size=2),
    Definition(name="ppl", aggregate="log_mean_exp"),
    Definition(name="median", aggregate="median"),
]


def arm(n, means):
    n = np.asarray(n)
    scores = Scores(example=np.arange(len(n)), n=n, nll=n * np.asarray(means, dtype=np.float64))
    return LossTable.of_scores(scores)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 30))
def test_a_flip_is_a_flip_of_the_values(seed, size):
    random = np.random.default_rng(seed)
    n = random.integers(1, 200, size)
    arms = {name: arm(n, random.gamma(2, 1, size)) for name in "abc"}
    by = Definition(name="token_mean")
    for found in disagreements(arms, OTHERS):
        other = next(d for d in OTHERS if d.name == found.other)

        plain, swapped = (
            float(np.subtract(*told(d, arms[found.first], arms[found.second]))) for d in (by, other)
        )
        assert found.difference == pytest.approx(plain, abs=1e-12)
        assert found.difference + found.shift == pytest.approx(swapped, abs=1e-9)
        if abs(plain * swapped) > 1e-12:
            assert found.flips == (plain * swapped < 0)
        if found.bound is not None:
            assert abs(found.shift) <= found.bound + 1e-12
            if abs(found.difference) > found.bound + 1e-12:
                assert not found.flips
    assert len(disagreements(arms, OTHERS)) == 3 * len(OTHERS)


def tokens(example, part, nll, uniform=None, tokenizer=""):
    size = len(nll)
    return LossTable(
        example=np.array(example),
        position=np.arange(size),
        part=np.array(part),
        tokens=np.ones(size, dtype=np.int64),
        nll=np.array(nll, dtype=np.float64),
        uniform=None if uniform is None else np.full(size, uniform),
        tokenizer=tokenizer,
    )


def told(definition, *tables, texts=None):
    return [value(definition, LossEvidence(tables={"reference": table}, texts=texts)) for table in tables]


TOKEN = Definition(name="token_mean")
ANSWERS, PROMPT = [0] * 10, [2] * 30
PAGE = {
    "token and example mean": (
        [arm([10, 10, 100], [1.0, 1.0, 2.0]), arm([10, 10, 100], [1.4, 1.4, 1.9])],
        OTHERS[0],
    ),
    "token mean and mean of batches of 2": (
        [arm([1, 1, 50, 50], [1.0, 1.0, 2.0, 2.0]), arm([1, 1, 50, 50], [1.5, 1.5, 1.9, 1.9])],
        OTHERS[1],
    ),
    "token mean and mean of the perplexities": (
        [arm([10, 10], [1.0, 3.0]), arm([10, 10], [2.05, 2.05])],
        Definition(name="ppl", aggregate="log_mean_exp", exponential=True),
    ),
    "token mean and median": (
        [arm([10, 10, 10], [1.0, 1.0, 4.0]), arm([10, 10, 10], [1.9, 1.9, 1.9])],
        OTHERS[3],
    ),
    "answers, and prompts as well": (
        [
            tokens([0] * 40, ANSWERS + PROMPT, [1.0] * 10 + [3.0] * 30),
            tokens([0] * 40, ANSWERS + PROMPT, [1.1] * 10 + [2.8] * 30),
        ],
        Definition(name="prompts", covers=("answer", "end", "prompt")),
    ),
    "with smoothing of 0.1": (
        [tokens([0], [0], [1.0], 12.0), tokens([0], [0], [1.1], 9.0)],
        Definition(name="smooth", smoothing=0.1),
    ),
    "the first row repeated by a sampler": (
        [arm([10, 10, 10], [1.0, 2.0, 2.0]), arm([10, 10, 10], [1.7, 1.6, 1.6])],
        Definition(name="twice", times=((0, 2),)),
    ),
}


def rows_of_the_page():
    page = (Path(__file__).parents[2] / "docs" / "method" / "metrics.md").read_text(encoding="utf-8")
    table = page.split("## An example of each")[1].split("|---|---|---|---|---|---|\n")[1]
    cells = [[c.strip(" *") for c in line.split("|")[1:-1]] for line in table.splitlines() if line]
    return {
        row[0]: [
            [float(number.strip(" *").replace("∞", "inf")) for number in cell.split(",")] for cell in row[4:]
        ]
        for row in cells
    }


@pytest.mark.parametrize("name", PAGE)
def test_the_constructed_examples_of_the_page(name):
    """Each changes places, with the numbers that the page prints."""
    tables, other = PAGE[name]
    by_one, by_other = rows_of_the_page()[name]
    assert told(TOKEN, *tables) == pytest.approx(by_one, abs=6e-4)
    assert told(other, *tables) == pytest.approx(by_other, abs=6e-4)
    (found,) = disagreements(dict(zip(("one", "other"), tables, strict=True)), [other])
    assert found.flips


def test_the_examples_of_the_page_that_need_two_tables_or_terms():
    rows = rows_of_the_page()
    assert set(rows) - set(PAGE) == {
        "with a regulariser",
        "whole, and cut to two tokens",
        "batches that overflow left out",
        "per token and per byte, two tokenizers",
    }
    one, other = arm([1], [2.0]), arm([1], [2.1])
    added = [Definition(name="r", regulariser=size) for size in (0.3, 0.1)]
    assert [told(d, t)[0] for d, t in zip(added, (one, other), strict=True)] == pytest.approx(
        rows["with a regulariser"][1]
    )
    whole = [tokens([0] * 3, [0] * 3, nll) for nll in ([1.0, 1.0, 3.0], [1.5, 1.5, 1.5])]
    cut = [tokens([0] * 2, [0] * 2, nll) for nll in ([1.0, 1.0], [1.5, 1.5])]
    for shown, tables in zip(rows["whole, and cut to two tokens"], (whole, cut), strict=True):
        assert told(TOKEN, *tables) == pytest.approx(shown, abs=6e-4)
    overflow, fine = arm([1, 1], [2.0, np.inf]), arm([1, 1], [2.1, 3.0])
    kept = [told(Definition(name="skip", times=((1, 0),)), overflow)[0], told(TOKEN, fine)[0]]
    assert kept == pytest.approx(rows["batches that overflow left out"][1])
    texts = Texts.of(["x" * 100])
    two = [tokens([0] * 20, [0] * 20, [3.0] * 20), tokens([0] * 30, [0] * 30, [2.5] * 30)]
    per_token, per_byte = rows["per token and per byte, two tokenizers"]
    assert told(TOKEN, *two) == pytest.approx(per_token)
    assert told(Definition(name="b", unit="bits_per_byte"), *two, texts=texts) == pytest.approx(
        per_byte, abs=6e-4
    )


def test_an_arm_ahead_on_every_example_is_ahead_by_all():
    """The bound on any aggregate: reached, and what it rules out."""
    n = [3, 5, 8]
    one, other = arm(n, [1.0, 2.0, 3.0]), arm(n, [1.2, 2.1, 3.6])
    for found in disagreements({"one": one, "other": other}, OTHERS):
        assert not found.flips
        assert found.bound is not None
        assert abs(found.shift) <= found.bound + 1e-12
    delta = np.array([-0.1, -0.1, 2.0])
    (median,) = disagreements(
        {"one": arm([1] * 3, [0.9, 0.9, 3.0]), "other": arm([1] * 3, [1.0] * 3)}, [OTHERS[3]]
    )
    assert median.difference == pytest.approx(delta.mean())
    assert median.bound == pytest.approx(range_bound(median.difference, delta))
    assert median.difference + median.shift == pytest.approx(delta.min()), (
        "the lower end of the range is reached"
    )


def test_smoothing_has_no_bound_in_these_losses():
    tables = dict(zip(("one", "other"), PAGE["with smoothing of 0.1"][0], strict=True))
    (found,) = disagreements(tables, [PAGE["with smoothing of 0.1"][1]])
    assert found.bound is None


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
