"""Batches of several runs as one, and whose rows are whose."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from tests.tasks.bases import LABELS, TARGETS, rows
from tests.training.small import encoded

from loratlas.data.batches.batching import collate
from loratlas.errors import ModelError
from loratlas.training.fleet.adapter_slots import AdapterSlot
from loratlas.training.fleet.row_slices import RowSlices, can_join, join_batches, padded_tokens

ROWS = {
    "text": lambda: encoded(5),
    "label": lambda: rows("bert", LABELS, 5),
    "target": lambda: rows("t5", TARGETS, 5),
}


def parts(form, *, packed=False):
    """(all rows, the first two of them, the other three)."""
    data = ROWS[form]()
    chosen = (range(5), range(2), range(2, 5))
    return [
        collate([data.examples[i] for i in part], packed=packed, pad_id=9, rows=list(part)) for part in chosen
    ]


@pytest.mark.parametrize(("form", "packed"), [("text", True), *((form, False) for form in ROWS)])
def test_joined_batches_are_the_batch_of_all_rows(form, packed):
    whole, *apart = parts(form, packed=packed)
    result = join_batches(apart, pad_id=9)
    for field in fields(whole):
        one, other = getattr(result, field.name), getattr(whole, field.name)
        if field.name == "position_ids" and not packed:  # of padding they say nothing
            one, other = (torch.where(whole.example < 0, 0, value) for value in (one, other))
        assert torch.equal(one, other) if isinstance(other, torch.Tensor) else one == other


def test_where_only_some_texts_have_types_the_others_have_the_first():
    _, first, second = parts("label")
    second = replace(second, token_type_ids=torch.ones_like(second.input_ids))
    result = join_batches([first, second], pad_id=9).token_type_ids
    assert result[:2].sum() == 0
    assert result[2:].sum() == second.input_ids.numel()


def test_rows_are_told_by_the_layout_of_the_batch():
    _, *apart = parts("label")
    row_slices = RowSlices.of([(AdapterSlot({}), batch) for batch in apart])
    first, second = row_slices.slices
    for x in (torch.ones(5, 7, 3), torch.ones(35, 3)):
        assert (row_slices.rows(first, x), row_slices.rows(second, x)) == (slice(0, 14), slice(14, 35))
    for x in (torch.ones(1, 10, 3), torch.ones(7, 5, 3), torch.ones(12, 3)):
        with pytest.raises(ModelError, match="not laid out as they are"):
            row_slices.rows(first, x)
    alone = RowSlices.of([(AdapterSlot({}), apart[0])])
    assert alone.rows(alone.slices[0], torch.ones(1, 10, 3)) == slice(0, 10)


def test_counted_places_are_told_by_their_number():
    _, *apart = parts("text", packed=True)
    row_slices = RowSlices.of([(AdapterSlot({}), batch) for batch in apart])
    counted = sum(batch.labelled for batch in apart)
    result = row_slices.rows(row_slices.slices[1], torch.ones(1, counted, 3), counted=True)
    assert result == slice(apart[0].labelled, counted)
    tokens = sum(batch.tokens for batch in apart)
    assert row_slices.rows(row_slices.slices[1], torch.ones(1, tokens, 3)) == slice(apart[0].tokens, tokens)


def test_a_batch_goes_along_where_filling_up_costs_less_than_a_pass():
    data = encoded(2)

    def wide(n):
        return replace(collate(data.examples, packed=False), input_ids=torch.ones(2, n, dtype=torch.long))

    assert padded_tokens([wide(10), wide(20)]) == 80
    assert can_join([wide(10)], wide(20), most=80)
    assert not can_join([wide(10)], wide(20), most=79)
    assert not can_join([wide(10)], wide(107), most=10_000)
