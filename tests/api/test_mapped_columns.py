"""Columns named for the training rows are not asked of embedded rows, in a study as in `train`."""

from __future__ import annotations

import json

from tests.serving.tiny_base import save_tiny_base, tiny_study

from loratlas.study.inputs.prepare import prepare
from loratlas.study.spec.spec_file import parse_spec


def test_embedded_rows_are_judged_beside_mapped_ones(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"q": f"what {n}", "a": f"that {n}"}) + "\n" for n in range(24)))
    data = {"train": str(rows), "map": {"prompt": "q", "completion": "a"}, "eval": "demo:facts-300"}
    spec = tiny_study(save_tiny_base(tmp_path / "base"), rows, name="mapped", data=data)
    prepared = prepare(parse_spec(spec))
    assert len(prepared.train) == 20
    assert prepared.evaluation.source.startswith("demo:facts-300")
