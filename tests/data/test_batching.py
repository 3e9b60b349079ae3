"""Batches keep every token, count each one once, and never look across examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loratlas.data.batches.batching import IGNORED, collate, evaluation_batches, training_order
from loratlas.data.examples import Encoded, EncodeReport, Example
from loratlas.errors import SettingsError


@st.composite
def example_lists(draw, most: int = 6):
    """Examples of 1 to 9 tokens, with any marks (never on the first token)."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=most))
    examples = []
    for row, n in enumerate(lengths):
        ids = np.asarray(draw(st.lists(st.integers(0, 99), min_size=n, max_size=n)), dtype=np.int32)
        marks = np.asarray([False, *draw(st.lists(st.booleans(), min_size=n - 1, max_size=n - 1))])
        examples.append(Example(input_ids=ids, labelled=marks, row=row))
    return examples


def encoded_of(examples: list[Example]) -> Encoded:
    report = EncodeReport(
        rows=len(examples), kept=len(examples), cut=0, dropped=0, empty=0, tokens=0, answer_tokens=0
    )
    return Encoded(examples=tuple(examples), report=report, digest="", template="", pad_id=7, source="here")


@settings(max_examples=150, deadline=None)
@given(example_lists(), st.booleans())
def test_every_token_is_there_once_and_targets_are_the_next_tokens(examples, packed):
    batch = collate(examples, packed=packed, pad_id=7)
    real = batch.example >= 0
    assert batch.tokens == int(real.sum()) == sum(batch.lengths)
    for index, example in enumerate(examples):
        mine = batch.example == index
        assert batch.input_ids[mine].tolist() == example.input_ids.tolist()
        assert batch.position_ids[mine].tolist() == list(range(len(example)))
        expected = np.where(example.labelled[1:], example.input_ids[1:], IGNORED)
        assert batch.targets[mine].tolist() == [*expected, IGNORED]
    assert (batch.input_ids[~real] == 7).all()
    assert (batch.targets[~real] == IGNORED).all()
    if packed:
        assert batch.input_ids.shape == (1, batch.tokens)
        assert batch.attention_mask is None
    else:
        assert batch.input_ids.shape == (len(examples), max(batch.lengths))
        assert torch.equal(batch.attention_mask.bool(), real)


@settings(max_examples=100, deadline=None)
@given(example_lists(), st.booleans())
def test_counted_places_come_row_by_row(examples, packed):
    batch = collate(examples, packed=packed)
    expected = [int(t) for example in examples for t in example.input_ids[example.labelled]]
    assert batch.answers.tolist() == expected
    assert batch.answers.tolist() == batch.targets[batch.targets != IGNORED].tolist()
    assert batch.labelled == len(expected)
    owners = [index for index, example in enumerate(examples) for _ in range(int(example.labelled.sum()))]
    assert batch.owners.tolist() == owners


def test_rows_keep_their_names_and_an_empty_batch_is_refused():
    example = Example(input_ids=np.arange(3, dtype=np.int32), labelled=np.array([False, True, True]), row=0)
    assert collate([example, example], packed=True, rows=[8, 3]).rows == (8, 3)
    assert collate([example, example], packed=True).rows == (0, 1)
    with pytest.raises(ValueError, match="at least one"):
        collate([], packed=True)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**40))
def test_each_epoch_holds_every_example_once(n, steps, batch_size, seed):
    order = training_order(n, steps=steps, batch_size=batch_size, seed=seed)
    assert order.shape == (steps, batch_size)
    flat = order.reshape(-1)
    for start in range(0, len(flat), n):
        epoch = flat[start : start + n]
        assert len(set(epoch.tolist())) == len(epoch)
        assert epoch.min() >= 0
        assert epoch.max() < n
    assert np.array_equal(order, training_order(n, steps=steps, batch_size=batch_size, seed=seed))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.data())
def test_a_subset_is_all_that_is_seen(n, data):
    subset = data.draw(st.integers(1, n))
    order = training_order(n, steps=2 * subset, batch_size=1, seed=5, subset=subset)
    assert len(set(order.reshape(-1).tolist())) == subset


def test_more_steps_go_on_where_fewer_ended():
    few, many = (training_order(10, steps=steps, batch_size=4, seed=1) for steps in (3, 9))
    assert np.array_equal(many[:3], few)


def test_seeds_draw_order_and_subset():
    orders = [training_order(50, steps=1, batch_size=20, seed=seed, subset=20) for seed in range(4)]
    assert len({tuple(sorted(order.reshape(-1))) for order in orders}) == 4
    # The numbers themselves are part of the promise: a study resumed on another machine sees the same rows.
    assert training_order(8, steps=1, batch_size=8, seed=0).tolist() == [[1, 3, 7, 6, 0, 4, 2, 5]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "steps = 0"),
        ({"batch_size": 0}, "batch size = 0"),
        ({"seed": -1}, "seed -1"),
        ({"subset": 11}, "subset of 11"),
        ({"subset": 0}, "subset of 0"),
    ],
)
def test_senseless_orders_are_refused(change, words):
    with pytest.raises(SettingsError, match=words):
        training_order(10, **{"steps": 1, "batch_size": 1, "seed": 0, **change})


@settings(max_examples=100, deadline=None)
@given(example_lists(most=12), st.integers(1, 40), st.booleans())
def test_evaluation_sees_every_example_once_within_the_limit(examples, limit, packed):
    batches = list(evaluation_batches(encoded_of(examples), max_tokens=limit, packed=packed))
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(examples)))
    lengths = [n for batch in batches for n in batch.lengths]
    assert lengths == sorted(lengths, reverse=True)
    for batch in batches:
        assert batch.packed is packed
        assert batch.input_ids.numel() <= limit or len(batch.rows) == 1
        for row, n in zip(batch.rows, batch.lengths, strict=True):
            assert n == len(examples[row])
