"""Which files and which rows ``--split`` means."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratlas.data.load_rows import load_rows
from loratlas.data.records.folder_splits import folder_splits
from loratlas.data.records.split_spec import SplitSpec
from loratlas.errors import DataError


def write(path: Path, *texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def texts(source: object, split: str | None = None) -> list[str]:
    return [row.turns[0].content for row in load_rows(source, split=split).rows]


def test_files_of_a_folder_belong_to_splits_by_their_names(tmp_path):
    for name in (
        "train-00000-of-00002.jsonl",
        "train-00001-of-00002.jsonl.gz",
        "dev.csv",
        "more/test/rows.parquet",
        "seen-00000-of-00001.jsonl",
        "README.md",
        ".hidden/train.jsonl",
        "_notes.json",
    ):
        write(tmp_path / name, "a")
    folder = folder_splits(tmp_path, "f")
    named = {
        split: [str(path.relative_to(tmp_path)) for path in paths] for split, paths in folder.splits.items()
    }
    assert named == {
        "train": ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl.gz"],
        "validation": ["dev.csv"],
        "test": ["more/test/rows.parquet"],
        "seen": ["seen-00000-of-00001.jsonl"],
    }
    assert list(named) == ["train", "validation", "test", "seen"]


def test_several_files_of_a_split_lie_end_to_end(tmp_path):
    write(tmp_path / "train-00000-of-00002.jsonl", "a", "b")
    write(tmp_path / "train-00001-of-00002.jsonl.gz", "c")
    write(tmp_path / "test.jsonl", "d", "e")
    assert texts(tmp_path) == ["a", "b", "c"]
    assert texts(tmp_path, "test") == ["d", "e"]
    assert texts(tmp_path, "train[1:]+test[:1]") == ["b", "c", "d"]
    assert texts(tmp_path, "test+train") == ["d", "e", "a", "b", "c"]
    assert texts(tmp_path, "train[-1:]") == ["c"]
    assert len(load_rows(tmp_path, split="train[1:]+test", limit=3)) == 3
    assert [row.source_row for row in load_rows(tmp_path, split="train[1:]").rows] == [0, 1]


def test_a_file_that_belongs_to_no_split_is_remarked(tmp_path):
    write(tmp_path / "train.jsonl", "a")
    write(tmp_path / "extra.jsonl", "b")
    rows = load_rows(tmp_path)
    assert [row.turns[0].content for row in rows.rows] == ["a"]
    assert rows.remarks == ("files that belong to no split and are not read: extra.jsonl",)


def test_a_folder_without_words_for_splits_is_one_split(tmp_path):
    write(tmp_path / "b.jsonl", "b")
    write(tmp_path / "a.jsonl", "a")
    assert texts(tmp_path) == ["a", "b"]


@pytest.mark.parametrize(
    ("split", "found"),
    [
        ("validation", "has the splits train, test"),
        ("train[", "(?i)unrecognized"),
        ("train[1:2", "(?i)unrecognized"),
        ("train[:9000%]", "(?i)percent"),
        ("train[5:7]", "(?i)no rows in it|out of range|only"),
        ("\x1b[2J", "(?i)unrecognized"),
    ],
)
def test_splits_that_are_not_there_are_a_sentence(tmp_path, split, found):
    write(tmp_path / "train.jsonl", "a")
    write(tmp_path / "test.jsonl", "b")
    with pytest.raises(DataError, match=found) as caught:
        load_rows(tmp_path, split=split)
    assert "\x1b" not in str(caught.value)


def test_no_train_and_several_others_asks_which(tmp_path):
    write(tmp_path / "test.jsonl", "a")
    write(tmp_path / "dev.jsonl", "b")
    with pytest.raises(
        DataError, match=r"the splits validation, test, and no train among them.*split='validation'"
    ):
        load_rows(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="a folder without data files"):
        load_rows(tmp_path / "none")


@given(
    start=st.none() | st.integers(-12, 12),
    stop=st.none() | st.integers(-12, 12),
    size=st.integers(1, 10),
)
def test_slices_are_those_of_datasets(start, stop, size):
    import datasets

    text = f"train[{'' if start is None else start}:{'' if stop is None else stop}]"
    try:
        (wanted,) = datasets.ReadInstruction.from_spec(text).to_absolute({"train": size})
    except (ValueError, AssertionError):
        with pytest.raises(DataError):
            SplitSpec(text).spans({"train": size})
        return
    assert SplitSpec(text).spans({"train": size}) == [range(wanted.from_, wanted.to)]


README = """\ufeff---
license: mit
configs:
- config_name: one
  data_files:
  - split: train
    path: a/*
  - split: test
    path: [b/x.jsonl, "c/**/*.jsonl"]
- config_name: two
  default: true
  data_files: ["./b/x.jsonl"]
- config_name: three
  data_dir: c
---
# Rows
"""


def test_a_folder_is_read_as_its_readme_declares(tmp_path):
    """As `datasets` reads it: the default configuration, others by name; files that it does not name are not read."""
    (tmp_path / "README.md").write_text(README)
    write(tmp_path / "a" / "p.jsonl", "a1", "a2")
    (tmp_path / "a" / "notes.txt").write_text("no rows")
    write(tmp_path / "b" / "x.jsonl", "b1")
    write(tmp_path / "c" / "deep" / "test.jsonl", "c1")
    write(tmp_path / "train.jsonl", "never")
    assert texts(tmp_path) == ["b1"]
    assert texts(f"{tmp_path}:one") == ["a1", "a2"]
    assert texts(f"{tmp_path}:one", "test") == ["b1", "c1"]
    assert texts(f"{tmp_path}:three") == ["c1"]
    with pytest.raises(DataError, match="the configurations one, two, three"):
        load_rows(f"{tmp_path}:four")
    with pytest.raises(DataError, match="has the splits train, test"):
        load_rows(f"{tmp_path}:one", split="dev")


def test_configurations_without_a_default_have_to_be_named(tmp_path):
    (tmp_path / "README.md").write_text(README.replace("  default: true\n", ""))
    write(tmp_path / "b" / "x.jsonl", "b1")
    with pytest.raises(DataError, match="the configurations one, two, three") as caught:
        load_rows(tmp_path)
    assert caught.value.instead == f"{tmp_path}:one"
    assert texts(f"{tmp_path}:two") == ["b1"]


@pytest.mark.parametrize(
    ("readme", "said"),
    [
        ("---\nconfigs:\n- {config_name: x, data_files: ../rows.jsonl}\n---\n", "outside of the folder"),
        ("---\nconfigs:\n- {config_name: x, data_files: /etc/*}\n---\n", "outside of the folder"),
        ("---\nconfigs:\n- {data_dir: .., data_files: '*.jsonl'}\n---\n", "outside of the folder"),
        ("---\nconfigs:\n- {config_name: x, data_files: gone-*.jsonl}\n---\n", "gone-.*no such file"),
        ("---\nconfigs: {x: 1}\n---\n", "no list of mappings"),
        ("---\nconfigs: [\n---\n", "cannot be read"),
        ("---\nconfigs:\n- {config_name: x, data_files: [[a]]}\n---\n", "that is no text"),
        (
            "---\na: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a]\nconfigs:\n- {data_files: *b}\n---\n",
            "that is no text",
        ),
    ],
)
def test_a_readme_that_cannot_be_followed_is_refused(tmp_path, readme, said):
    (tmp_path / "README.md").write_text(readme)
    write(tmp_path / "rows.jsonl", "a")
    with pytest.raises(DataError, match=said):
        load_rows(tmp_path)


@pytest.mark.parametrize("readme", ["# Rows\n", "---\nlicense: mit\n---\n", "---\nconfigs: later\n"])
def test_a_readme_without_configurations_changes_nothing(tmp_path, readme):
    (tmp_path / "README.md").write_text(readme)
    write(tmp_path / "rows.jsonl", "a")
    assert texts(tmp_path) == ["a"]
    with pytest.raises(DataError, match="declares no configuration"):
        load_rows(f"{tmp_path}:x")


def test_what_datasets_saved_to_disk_is_read(tmp_path):
    import datasets

    one = datasets.Dataset.from_list([{"text": "007"}, {"text": "NA"}])
    datasets.disable_progress_bars()
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=one, test=one.select([1])).save_to_disk(str(tmp_path / "two"))
    assert texts(tmp_path / "one") == texts(tmp_path / "two") == ["007", "NA"]
    assert texts(tmp_path / "two", "test") == ["NA"]
    assert texts(tmp_path / "one", "train[1:]") == ["NA"]
    (tmp_path / "two" / "dataset_dict.json").write_text("{")
    with pytest.raises(DataError, match="a saved data set that cannot be read"):
        load_rows(tmp_path / "two")


def test_a_key_that_stands_twice_where_nobody_reads_is_no_fault(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "meta": 1, "meta": {"x": 1, "x": 2}}\n' * 3)
    rows = load_rows(path)
    assert [row.turns[0].content for row in rows.rows] == ["a"] * 3
    assert "columns that form 'text' does not read: meta (3 rows)" in rows.remarks
