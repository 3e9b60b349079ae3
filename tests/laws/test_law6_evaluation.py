"""Law 6: losses do not depend on batch size, packing, padding or order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.training.small import adapted, encoded, wrap

from loratlas.evaluation.score import score


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_batches_and_packing_change_nothing(kind):
    data, model = encoded(30), adapted(kind)
    alone = score(model, data, packed=False, max_tokens=1)
    for packed in (True, False):
        for most in (33, 100, 10_000):
            scored = score(model, data, packed=packed, max_tokens=most)
            assert scored.token_mean_nll == pytest.approx(alone.token_mean_nll, rel=1e-6)
            np.testing.assert_allclose(scored.nll, alone.nll, rtol=5e-6)
            np.testing.assert_array_equal(scored.n, alone.n)
            assert scored.tokens is not None
            assert alone.tokens is not None
            np.testing.assert_array_equal(scored.tokens.position, alone.tokens.position)
            np.testing.assert_allclose(scored.tokens.nll, alone.tokens.nll, rtol=2e-5, atol=2e-6)


def test_order_changes_nothing_and_results_stay_with_their_examples():
    data, model = encoded(30), adapted()
    turned = np.random.default_rng(1).permutation(30)
    scored = score(model, wrap([data.examples[i] for i in turned]), packed=True, max_tokens=64)
    first = score(model, data, packed=True)
    np.testing.assert_allclose(scored.nll, first.nll[turned], rtol=5e-6)
    np.testing.assert_array_equal(scored.n, first.n[turned])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_equals_the_loss_of_transformers(kind):
    data, model = encoded(10), adapted(kind).eval()
    scored = score(model, data, packed=True)
    for index, example in enumerate(data.examples):
        ids = torch.from_numpy(example.input_ids).long()[None]
        labels = torch.where(torch.from_numpy(example.labelled)[None], ids, -100)
        with torch.no_grad():
            loss = float(model(input_ids=ids, labels=labels).loss)
        assert scored.nll[index] / scored.n[index] == pytest.approx(loss, rel=1e-5)
    assert scored.perplexity == pytest.approx(np.exp(scored.nll.sum() / scored.n.sum()))


def test_real_rows(shared):
    from loratlas.data.encode import encode, load_tokenizer
    from loratlas.data.load_rows import load_rows
    from loratlas.models.load import load_model

    source = str(shared("models/llama-mini"))
    rows = load_rows(str(shared("data/alpaca_eval.jsonl.gz")), limit=12)
    data = encode(rows, load_tokenizer(source), max_length=256)
    model = load_model(source, dtype="float32")
    packed = score(model, data, packed=True)
    padded = score(model, data, packed=False, max_tokens=300)
    assert packed.token_mean_nll == pytest.approx(padded.token_mean_nll, rel=1e-6)
    assert 1 < packed.token_mean_nll < 6
