"""Folders of evaluations: digests, what other versions left, and what belongs to somebody else."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from tests.training.small import adapted, encoded

from loratlas.errors import DataError, OutputError
from loratlas.evaluation.loss_files import read_tokens
from loratlas.evaluation.result_folder import ResultFolder
from loratlas.evaluation.score import read_scores, score
from loratlas.evaluation.token_scorer import measure


@pytest.fixture
def written(tmp_path):
    score(adapted(), encoded(9), packed=True, out=tmp_path / "new")
    return tmp_path / "new"


@pytest.mark.parametrize("name", ["examples.parquet", "tokens.parquet", "digests.json"])
def test_every_flipped_bit_is_found(written, name):
    path = written / name
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    read_scores(written)
    for index in random.integers(0, len(whole) * 8, 60):
        damaged = bytearray(whole)
        damaged[index // 8] ^= 1 << (index % 8)
        path.write_bytes(bytes(damaged))
        with pytest.raises(DataError, match=r"digests|SHA-256"):
            read_scores(written)
    path.write_bytes(whole)
    read_scores(written)


def test_a_table_that_was_cut_is_refused(written):
    path = written / "tokens.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="SHA-256"):
        read_tokens(written)


def test_tables_of_version_0_1_are_read(tmp_path):
    """Two schemas of it: counted tokens alone, and every token with NaN for what was not measured."""
    rows = {"example": np.array([0, 0, 1], np.int32), "position": np.array([1, 2, 1], np.int32)}
    segment = pa.DictionaryArray.from_arrays(pa.array([0, 0, 1], pa.int8()), ["answer", "prompt"])
    plain = pa.table({**rows, "segment": segment, "nll": np.array([1, 2, 3], np.float32)})
    parquet.write_table(plain, tmp_path / "tokens.parquet")
    result = read_tokens(tmp_path)
    assert result.counted.tolist() == [True, True, True]
    assert (result.uniform, result.error) == (None, None)
    nothing = np.full(3, np.nan, np.float32)
    more = {"counted": np.array([True, False, True]), "uniform": nothing, "error": nothing + 0}
    for name, column in more.items():
        plain = plain.append_column(name, pa.array(column))
    parquet.write_table(plain, tmp_path / "tokens.parquet")
    result = read_tokens(tmp_path)
    assert result.counted.tolist() == [True, False, True]
    assert (result.uniform, result.error) == (None, None)
    assert len(read_tokens(tmp_path, counted_only=True)) == 2


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"example": [0], "position": [1], "segment": ["answer"]}, "no column nll"),
        ({"example": [0], "position": [1], "segment": ["other"], "nll": [1.0]}, "segment 'other'"),
    ],
)
def test_tables_of_something_else_are_refused(tmp_path, columns, words):
    parquet.write_table(pa.table(columns), tmp_path / "tokens.parquet")
    with pytest.raises(DataError, match=words):
        read_tokens(tmp_path)


def test_the_result_of_another_evaluation_is_not_replaced(tmp_path):
    data = encoded(6)
    out = measure(adapted(), data.examples, packed=True, out=tmp_path / "x", chunk=3)
    before = (out / "tokens.parquet").read_bytes()
    with pytest.raises(OutputError, match="another evaluation"):
        measure(adapted(seed=4), data.examples, packed=True, out=out, chunk=3)
    with pytest.raises(OutputError, match="other rows"):
        measure(adapted(), encoded(6, seed=1).examples, packed=True, out=out, chunk=3)
    with pytest.raises(OutputError, match="other rows"):
        measure(adapted(), data.examples[:3], packed=True, out=out, chunk=3)
    assert (out / "tokens.parquet").read_bytes() == before
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "tokens.parquet").write_bytes(b"of an older version")
    with pytest.raises(OutputError, match=r"already holds tokens\.parquet"):
        ResultFolder(tmp_path / "y", {"rows": 1})


def test_unfinished_work_of_another_evaluation_is_removed_whole(tmp_path):
    """Killed after a table had its name: the table belongs to the unfinished work, and goes with it."""
    folder = tmp_path / "x"
    ResultFolder(folder, {"rows": 1})
    (folder / "tokens.parquet").write_bytes(b"of the first")
    other = ResultFolder(folder, {"rows": 2})
    assert not (folder / "tokens.parquet").exists()
    other.finish({"examples.parquet": {"example": np.array([0])}})
    assert json.loads((folder / "digests.json").read_text())["identity"] == {"rows": 2}
    assert sorted(p.name for p in folder.iterdir()) == ["digests.json", "examples.parquet"]
