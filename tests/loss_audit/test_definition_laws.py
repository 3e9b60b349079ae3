"""Law 6: the loss depends on none of batch size, order, packing and padding (float32, 1e-6)."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.training.small import adapted, encoded, wrap

from loratlas.evaluation.forward_condition import Condition
from loratlas.evaluation.score import score
from loratlas.evaluation.token_scorer import measure
from loratlas.loss_audit.token_table import read_table


@cache
def the_model():
    return adapted().eval()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(2, 14),
    packed=st.booleans(),
    max_tokens=st.integers(8, 400),
    chunk=st.integers(1, 20),
    padding=st.sampled_from([None, "right", "left"]),
    order=st.randoms(use_true_random=False),
)
def test_layout_changes_nothing(tmp_path_factory, seed, size, packed, max_tokens, chunk, padding, order):
    data = encoded(size, seed=seed)
    alone = [score(the_model(), wrap([e]), packed=False).nll[0] for e in data.examples]
    places = list(range(size))
    order.shuffle(places)
    shuffled = wrap([data.examples[k] for k in places])
    together = score(the_model(), shuffled, packed=packed, max_tokens=max_tokens)
    n = np.array([e.labelled.sum() for e in data.examples])
    mean = sum(alone) / n.sum()
    assert together.token_mean_nll == pytest.approx(mean, abs=1e-6)
    np.testing.assert_allclose(together.nll / together.n, np.array(alone)[places] / n[places], atol=2e-6)
    # Rotary positions know distances only, so that even the left edge changes nothing here.
    condition = Condition(padding=padding, batch_size=3 if padding else None)
    folder = measure(
        the_model(),
        shuffled.examples,
        packed=packed,
        out=tmp_path_factory.mktemp("t"),
        condition=condition,
        chunk=chunk,
        max_tokens=max_tokens,
        bounds=False,
    )
    result = read_table(folder)
    assert result.nll.mean() == pytest.approx(mean, abs=1e-6)
