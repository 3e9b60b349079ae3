"""The definitions, and the gaps between them to the last nat."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loratlas.errors import DataError
from loratlas.evaluation.score import Scores
from loratlas.loss_audit.audit import definitions, gaps, residual


def of(n, means):
    n = np.asarray(n)
    return Scores(example=np.arange(len(n)), n=n, nll=n * np.asarray(means, dtype=np.float64))


def by_hand(n, means):
    total, tokens = sum(a * b for a, b in zip(n, means, strict=True)), sum(n)
    ordered, half = sorted(means), len(means) // 2
    median = ordered[half] if len(means) % 2 else (ordered[half - 1] + ordered[half]) / 2
    return {
        "token_mean": total / tokens,
        "perplexity": math.exp(total / tokens),
        "example_mean": sum(means) / len(means),
        "example_mean_perplexity": math.exp(sum(means) / len(means)),
        "median": median,
        "median_perplexity": math.exp(median),
        "mean_example_perplexity": sum(math.exp(m) for m in means) / len(means),
        "sum": total,
        "example_sum": total / len(means),
        "batch_mean_8": by_batches(n, means, 8),
        "batch_mean_8_perplexity": math.exp(by_batches(n, means, 8)),
        "bits": total / tokens / math.log(2),
        "digits": total / tokens / math.log(10),
    } | ({"capped_20": 20.0} if total / tokens > 20 else {})


def by_batches(n, means, size):
    """What transformers' Trainer reports: each batch's token mean once per example of the batch."""
    told = []
    for start in range(0, len(n), size):
        here = slice(start, start + size)
        loss = sum(a * b for a, b in zip(n[here], means[here], strict=True)) / sum(n[here])
        told += [loss] * len(n[here])
    return sum(told) / len(told)


tables = st.lists(st.tuples(st.integers(1, 2000), st.floats(0, 60)), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(tables)
def test_definitions_and_gaps_on_any_table(table):
    n, means = zip(*table, strict=True)
    scores = of(n, means)
    wanted, found = by_hand(n, means), definitions(scores)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
    terms = {(gap["from"], gap["to"]): gap["nats"] for gap in gaps(scores)}
    assert terms["token_mean", "example_mean"] == pytest.approx(
        wanted["example_mean"] - wanted["token_mean"], abs=1e-9
    )
    assert terms["token_mean", "batch_mean_8"] == pytest.approx(
        wanted["batch_mean_8"] - wanted["token_mean"], abs=1e-9
    )
    jensen = terms["example_mean", "mean_example_perplexity"]
    assert jensen == pytest.approx(
        math.log(wanted["mean_example_perplexity"]) - wanted["example_mean"], abs=1e-9
    )
    assert jensen >= -1e-12
    assert terms["example_mean", "median"] == pytest.approx(
        wanted["median"] - wanted["example_mean"], abs=1e-9
    )
    assert residual(scores) < 1e-6


def test_signs_are_what_the_words_say():
    """Long examples with a low loss pull the token mean down."""
    scores = of([1, 9], [3.0, 1.0])
    first = gaps(scores)[0]
    assert definitions(scores)["token_mean"] == pytest.approx(1.2)
    assert first["nats"] == pytest.approx(0.8)


def test_equal_lengths_and_losses_leave_no_gap():
    assert all(abs(gap["nats"]) < 1e-15 for gap in gaps(of([5, 5, 5], [2.0, 2.0, 2.0])))
    assert gaps(of([5, 5], [1.0, 3.0]))[0]["nats"] == 0


def test_small_jensen_gaps_are_exact_and_near_their_estimate():
    means = 2 + 1e-5 * np.array([-1.0, 1.0, -2.0, 2.0])
    (gap,) = [g for g in gaps(of([3, 3, 3, 3], means)) if g["to"] == "mean_example_perplexity"]
    assert gap["nats"] == pytest.approx(1.25e-10, rel=1e-4)
    assert gap["estimate"] == pytest.approx(1.25e-10, rel=1e-4)


def test_a_wrong_term_shows_in_the_residual(monkeypatch):
    """Every term is computed by itself: a wrong one does not hide in another."""
    import loratlas.loss_audit.gaps as module

    scores = of([1, 9, 4], [3.0, 1.0, 2.0])
    right = module.example_term
    monkeypatch.setattr(module, "example_term", lambda found: right(found) + 1e-3)
    assert residual(scores) > 9e-4


def test_two_definitions_rank_two_adapters_differently():
    """One is better on long examples, the other on short ones."""
    n = [10, 10, 100]
    first, second = definitions(of(n, [1.0, 1.0, 2.0])), definitions(of(n, [1.4, 1.4, 1.9]))
    assert first["token_mean"] > second["token_mean"]
    assert first["example_mean"] < second["example_mean"]


def test_infinite_perplexities_do_not_break_the_gaps():
    scores = of([1, 2], [900.0, 1.0])
    assert definitions(scores)["mean_example_perplexity"] == math.inf
    assert residual(scores) < 1e-6


def test_no_counted_tokens():
    with pytest.raises(DataError, match="no examples"):
        definitions(of([], []))
    with pytest.raises(DataError, match="example 1 has no counted token"):
        gaps(of([2, 0], [1.0, 1.0]))
