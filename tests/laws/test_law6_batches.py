"""Law 6, the data's part: the loss of an example does not depend on what it is batched with, or how."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import tiny_model

from loratlas.data.batches.batching import collate, evaluation_batches
from loratlas.data.batches.packing import forward
from loratlas.data.examples import Encoded, EncodeReport, Example

_MODELS: dict[str, torch.nn.Module] = {}


def model_of(name: str):
    return _MODELS.setdefault(name, tiny_model(name))


@st.composite
def encodings(draw) -> Encoded:
    lengths = draw(st.lists(st.integers(2, 40), min_size=1, max_size=9))
    random = np.random.default_rng(draw(st.integers(0, 2**20)))
    examples = []
    for row, n in enumerate(lengths):
        marks = random.random(n) < 0.5
        marks[0], marks[-1] = False, True
        examples.append(
            Example(input_ids=random.integers(0, 96, n).astype(np.int32), labelled=marks, row=row)
        )
    n = len(examples)
    report = EncodeReport(rows=n, kept=n, cut=0, dropped=0, empty=0, tokens=sum(lengths), answer_tokens=0)
    return Encoded(examples=tuple(examples), report=report, digest="", template="", pad_id=0, source="drawn")


def losses(model, batches) -> dict[int, float]:
    """Summed loss of each example."""
    by_name: dict[int, float] = {}
    with torch.no_grad():
        for batch in batches:
            nll = torch.nn.functional.cross_entropy(
                forward(model, batch), batch.answers, reduction="none"
            ).double()
            sums = torch.zeros(len(batch.rows), dtype=torch.float64).index_add(0, batch.owners, nll)
            assert not by_name.keys() & set(batch.rows)
            by_name |= dict(zip(batch.rows, sums.tolist(), strict=True))
    return by_name


@settings(max_examples=25, deadline=None)
@given(encodings(), st.integers(1, 200), st.integers(1, 200))
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_losses_are_the_same_packed_padded_and_alone(name, encoded, few, many):
    model = model_of(name)
    alone = losses(model, (collate([e], packed=False, rows=[e.row]) for e in encoded.examples))
    for packed in (True, False):
        for max_tokens in (few, many):
            measured = losses(model, evaluation_batches(encoded, max_tokens=max_tokens, packed=packed))
            assert measured.keys() == alone.keys()
            for row, nll in alone.items():
                assert measured[row] == pytest.approx(nll, rel=1e-6, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(encodings(), st.integers(1, 200))
@pytest.mark.parametrize("name", ["bloom", "gpt_neo"])
def test_losses_are_the_same_padded_and_alone(name, encoded, max_tokens):
    model = model_of(name)
    alone = losses(model, (collate([e], packed=False, rows=[e.row]) for e in encoded.examples))
    measured = losses(model, evaluation_batches(encoded, max_tokens=max_tokens, packed=False))
    assert measured == pytest.approx(alone, rel=1e-6, abs=1e-6)
