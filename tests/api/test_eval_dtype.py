"""Which numbers a model was judged in stands in what `eval` returns."""

from __future__ import annotations

import pytest
from tests.serving.tiny_base import save_few_rows, save_tiny_base

import loratlas


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_is_reported(tmp_path, dtype):
    base, rows = save_tiny_base(tmp_path / "base"), save_few_rows(tmp_path / "rows.jsonl")
    judged = loratlas.evaluate(str(base), str(rows), dtype=dtype, max_length=48)
    assert judged.numbers["dtype"] == dtype
    assert judged.numbers["trained_dtype"] is None
