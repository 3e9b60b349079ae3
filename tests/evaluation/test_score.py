"""Scores: what stands in the tables, in memory and on disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pyarrow import parquet
from tests.training.small import adapted, encoded, weights, wrap

from loratlas.errors import DataError, OutputError, StorageError
from loratlas.evaluation.eval_precision import base_precision
from loratlas.evaluation.score import Scores, read_scores, score


def test_every_counted_token_once():
    data = encoded(9)
    scored = score(adapted(), data, packed=True)
    tokens = scored.tokens
    assert tokens is not None
    for index, example in enumerate(data.examples):
        mine = tokens.example == index
        np.testing.assert_array_equal(tokens.position[mine], np.flatnonzero(example.labelled))
        assert scored.n[index] == example.labelled.sum()
        assert scored.nll[index] == pytest.approx(float(tokens.nll[mine].astype(np.float64).sum()), rel=1e-12)
    assert (tokens.nll > 0).all()
    assert (scored.example.dtype, scored.n.dtype, scored.nll.dtype) == (np.int32, np.int32, np.float64)


def test_written_and_read_back(tmp_path):
    scored = score(adapted(), encoded(9), packed=True)
    scored.write(tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "digests.json",
        "examples.parquet",
        "tokens.parquet",
    ]
    again = read_scores(tmp_path / "new")
    for name in ("example", "n", "nll"):
        np.testing.assert_array_equal(getattr(again, name), getattr(scored, name))
    assert again.tokens is not None
    assert scored.tokens is not None
    for name in ("example", "position", "segment", "nll"):
        np.testing.assert_array_equal(getattr(again.tokens, name), getattr(scored.tokens, name))
    table = parquet.ParquetFile(tmp_path / "new" / "tokens.parquet")
    assert table.metadata.row_group(0).column(4).compression == "ZSTD"
    assert set(table.read()["segment"].to_pylist()) == {"answer"}


def test_streamed_equals_held(tmp_path, monkeypatch):
    from loratlas.evaluation import score as module

    monkeypatch.setattr(module, "CHUNK", 5)
    model, data = adapted(), encoded(20)
    held = score(model, data, packed=True, max_tokens=64)
    streamed = score(model, data, packed=True, max_tokens=64, out=tmp_path)
    assert streamed.tokens is None
    assert parquet.ParquetFile(tmp_path / "tokens.parquet").num_row_groups > 1
    again = read_scores(tmp_path)
    np.testing.assert_array_equal(again.nll, streamed.nll)
    np.testing.assert_allclose(again.nll, held.nll, rtol=1e-5)
    assert again.tokens is not None
    assert held.tokens is not None
    for name in ("example", "position", "segment", "counted"):
        np.testing.assert_array_equal(getattr(again.tokens, name), getattr(held.tokens, name))
    np.testing.assert_allclose(again.tokens.nll, held.tokens.nll, atol=1e-5)


def test_a_call_that_was_stopped_goes_on(tmp_path, monkeypatch):
    from loratlas.evaluation import score as module

    monkeypatch.setattr(module, "CHUNK", 5)
    model, data = adapted(), encoded(20)
    calls = []

    def fail(*_):
        calls.append(None)
        if len(calls) == 3:
            raise RuntimeError("in the middle")

    model.get_base_model().register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        score(model, data, packed=True, max_tokens=512, out=tmp_path)
    assert not (tmp_path / "examples.parquet").exists()
    streamed = score(model, data, packed=True, max_tokens=512, out=tmp_path)
    assert len(calls) == 5, "two of four chunks were not scored again"
    np.testing.assert_allclose(streamed.nll, score(model, data, packed=True).nll, rtol=1e-5)
    assert len(score(model, data, packed=True, max_tokens=512, out=tmp_path).n) == 20, "complete: read"
    assert len(calls) == 5 + 1, "only the comparison in memory ran the model"


def test_a_pass_prepares_the_model_once(monkeypatch):
    """Classes are exchanged and modules scanned once per pass, not once per batch."""
    from loratlas.adapters.layers import lean_lora

    entered, right = [], lean_lora.lean
    monkeypatch.setattr(lean_lora, "lean", lambda model: (entered.append(None), right(model))[1])
    model, passes = adapted(), []
    model.get_base_model().register_forward_hook(lambda *_: passes.append(None))
    score(model, encoded(20), packed=True, max_tokens=33)
    assert len(passes) > 5
    assert len(entered) == 1


def test_dropout_is_off_and_the_model_is_left_as_it_was():
    model, data = adapted(lora_dropout=0.5, dtype="bfloat16"), encoded(6)
    before = weights(model)
    model.train()
    first = score(model, data, packed=True)
    assert model.training
    assert all(m.training for m in model.modules())
    np.testing.assert_array_equal(first.nll, score(model, data, packed=True).nll)
    after = weights(model)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(value.dtype == torch.float32 for value in after.values())


def test_factors_are_rounded_to_the_base_only_within():
    model = adapted(dtype="bfloat16")
    with base_precision(model):
        assert {p.dtype for n, p in model.named_parameters() if "lora_" in n} == {torch.bfloat16}
    assert {p.dtype for n, p in model.named_parameters() if "lora_" in n} == {torch.float32}
    exact = adapted()
    pointers = [p.data_ptr() for p in exact.parameters()]
    with base_precision(exact):
        assert [p.data_ptr() for p in exact.parameters()] == pointers


def test_perplexity_is_the_exponential_and_may_be_infinite():
    def of(nll):
        return Scores(example=np.array([0]), n=np.array([2]), nll=np.array([nll]))

    assert of(4.0).perplexity == pytest.approx(np.exp(2.0))
    assert of(4000.0).perplexity == float("inf")


def test_nothing_to_score():
    with pytest.raises(DataError, match="no examples"):
        score(adapted(), wrap([]), packed=True)


def test_unreadable_tables(tmp_path):
    with pytest.raises(DataError, match="no readable table"):
        read_scores(tmp_path)
    (tmp_path / "examples.parquet").write_text("not a table")
    with pytest.raises(DataError, match="no readable table"):
        read_scores(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    scored = score(adapted(), encoded(2), packed=True)
    with pytest.raises((OutputError, StorageError), match="could not be written"):
        scored.write(tmp_path / "file")
