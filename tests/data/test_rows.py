"""Every form in, the same rows out; every broken file names the place where it is broken."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from loratlas.data.load_rows import load_rows
from loratlas.data.rows import Row, Turn, rows_digest
from loratlas.errors import DataError

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hue of the sky?"},
    {"role": "assistant", "content": "Blue."},
    {"role": "user", "content": "At night?"},
    {"role": "assistant", "content": "Black."},
]


def write(path: Path, records: list[dict[str, Any]]) -> str:
    """Write records in the format that the suffix names."""
    text = "".join(json.dumps(record) + "\n" for record in records)
    if path.name.endswith(".jsonl"):
        path.write_text(text)
    elif path.name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".json":
        path.write_text(json.dumps(records, indent=1))
    else:
        import pyarrow as pa
        from pyarrow import csv, parquet

        table = pa.Table.from_pylist(records)
        if path.suffix == ".csv":
            csv.write_csv(table, path)
        else:
            parquet.write_table(table, path)
    return str(path)


def user(text: str) -> Turn:
    return Turn(role="user", content=text)


def assistant(text: str) -> Turn:
    return Turn(role="assistant", content=text)


@pytest.mark.parametrize(
    ("record", "form", "turns"),
    [
        (
            {"instruction": "Add.", "input": "1 and 2", "output": "3"},
            "alpaca",
            (user("Add.\n\n1 and 2"), assistant("3")),
        ),
        ({"instruction": "Sing.", "input": "", "output": "La."}, "alpaca", (user("Sing."), assistant("La."))),
        ({"instruction": "Sing.", "output": "La."}, "alpaca", (user("Sing."), assistant("La."))),
        ({"prompt": "1 + 1", "completion": "2"}, "prompt", (user("1 + 1"), assistant("2"))),
        (
            {"prompt": CHAT[:2], "completion": CHAT[2:3]},
            "prompt",
            (Turn(role="system", content="Be brief."), user("Hue of the sky?"), assistant("Blue.")),
        ),
        ({"messages": CHAT}, "messages", tuple(Turn(**turn) for turn in CHAT)),
        ({"text": "All of it."}, "text", (Turn(role="text", content="All of it."),)),
        ({"text": "Dull.", "label": 1}, "label", (user("Dull."), assistant("1"))),
        ({"text": "Dull.", "label": "bad"}, "label", (user("Dull."), assistant("bad"))),
        ({"text": "A.", "text_pair": "B.", "label": 1}, "label", (user("A.\n\nB."), assistant("1"))),
        (
            {"instruction": "Sing.", "output": "La.", "system": "You sing."},
            "alpaca",
            (Turn(role="system", content="You sing."), user("Sing."), assistant("La.")),
        ),
    ],
)
def test_forms_are_told_apart_by_their_fields(tmp_path, record, form, turns):
    rows = load_rows(write(tmp_path / "a.jsonl", [record]))
    assert rows.form == form
    texts = tuple(record[name] for name in ("text", "text_pair") if name in record) if form == "label" else ()
    assert rows.rows == (Row(turns=turns, label=record.get("label"), texts=texts, source_row=0),)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.parquet"])
def test_formats_give_the_same_rows(tmp_path, name):
    records = [{"prompt": f"count {n}", "completion": f"it is {n}"} for n in range(5)]
    rows = load_rows(write(tmp_path / name, records))
    assert [row.turns[1].content for row in rows.rows] == [record["completion"] for record in records]
    assert [row.source_row for row in rows.rows] == list(range(5))
    assert rows.digest == load_rows(write(tmp_path / "other.jsonl", records)).digest


def test_csv_keeps_line_breaks_and_turns_numbers_into_text(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('prompt,completion\n"two\nlines",7\n')
    assert load_rows(str(path)).rows[0].turns == (user("two\nlines"), assistant("7"))


def test_a_folder_of_splits_and_the_split_option(tmp_path):
    write(tmp_path / "train.jsonl", [{"text": f"train {n}"} for n in range(4)])
    write(tmp_path / "test.jsonl", [{"text": "test"}])
    assert load_rows(str(tmp_path)).rows[0].turns[0].content == "train 0"
    assert load_rows(str(tmp_path), split="test").rows[0].turns[0].content == "test"
    sliced = load_rows(str(tmp_path), split="train[1:3]")
    assert [row.turns[0].content for row in sliced.rows] == ["train 1", "train 2"]
    with pytest.raises(DataError, match="validation"):
        load_rows(str(tmp_path), split="validation")


def test_mapping_names_columns_and_hides_their_own_names(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"question": "Why?", "answer": "So.", "text": "noise"}])
    rows = load_rows(source, mapping={"prompt": "question", "completion": "answer"})
    assert rows.form == "prompt"
    assert rows.rows[0].turns == (user("Why?"), assistant("So."))
    alpaca = write(tmp_path / "b.jsonl", [{"instruction": "a", "output": "b"}])
    assert load_rows(alpaca, mapping={"prompt": "instruction", "completion": "output"}).form == "prompt"


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"prompt": "qestion"}, "no column 'qestion'.*'question', the nearest"),
        ({"promt": "question"}, "no form has a field 'promt'.*'prompt', the nearest"),
    ],
)
def test_a_wrong_mapping_names_the_nearest(tmp_path, mapping, words):
    source = write(tmp_path / "a.jsonl", [{"question": "Why?", "answer": "So."}])
    with pytest.raises(DataError, match=words):
        load_rows(source, mapping=mapping)


def test_limit_and_digest(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"text": str(n)} for n in range(9)])
    few, all_ = load_rows(source, limit=3), load_rows(source)
    assert len(few) == 3
    assert len(all_) == 9
    assert few.digest == rows_digest(all_.rows[:3]) != all_.digest
    with pytest.raises(DataError, match="limit of 0"):
        load_rows(source, limit=0)


def test_the_digest_sees_every_field():
    row = Row(turns=(user("a"), assistant("b")), source_row=0)
    others = [
        Row(turns=(user("a"), assistant("c")), source_row=0),
        Row(turns=(assistant("a"), user("b")), source_row=0),
        Row(turns=(user("ab"), assistant("")), source_row=0),
        Row(turns=(user("a"), assistant("b")), label=0, source_row=0),
    ]
    assert len({rows_digest([one]) for one in [row, *others]}) == 5
    assert rows_digest([row, row]) != rows_digest([row])


BROKEN = {
    "an empty file": "",
    "empty lines": "\n\n",
    "broken JSON on line 3": '{"text": "a"}\n\n{"text": \n',
    "broken JSON on line 2": '{"text": "a"}\n{"text": "b"\n{"text": "c"}\n',
    "line 2 holds a list": '{"text": "a"}\n[1]\n',
    "missing field 'completion' on row 2": '{"prompt": "a", "completion": "b"}\n{"prompt": "c"}\n',
    "missing field 'output' on row 1": '{"instruction": "a", "output": null}\n',
    "missing field 'label' on row 2": '{"text": "a", "label": 0}\n{"text": "b"}\n',
    "labels of two kinds: 1 on row 1, 'good' on row 2": '{"text": "a", "label": 1}\n{"text": "b", "label": "good"}\n',
    "label 0.5 is neither an integer nor a text on row 1": '{"text": "a", "label": 0.5}\n',
    "label true is neither an integer nor a text on row 1": '{"text": "a", "label": true}\n',
    "an empty label on row 1": '{"text": "a", "label": " "}\n',
    "missing field 'text_pair' on row 2": '{"text": "a", "text_pair": "b", "label": 1}\n{"text": "a", "label": 1}\n',
    "label out of range: -1 on row 2": '{"text": "a", "label": 1}\n{"text": "b", "label": -1}\n',
    "the fields q, a, which are none of the known forms": '{"q": "a", "a": "b"}\n',
    "message 2 of 'messages' has the role 'bot' on row 1": (
        '{"messages": [{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}]}\n'
    ),
    "message 1 of 'messages' has a missing field 'content' on row 1": '{"messages": [{"role": "user"}]}\n',
    "field 'messages' is no list of messages on row 1": '{"messages": "hello"}\n',
    "field 'text' is a dict, not a text on row 1": '{"text": {"a": "b"}}\n',
    "an empty list": "[]",
    "row 2 is a int, not an object": '[{"text": "a"}, 2]',
    r"broken JSON on line 2 \(": '[{"text": "a"},\n{"text": ]\n',
}


@pytest.mark.parametrize("found", BROKEN)
def test_bad_files_say_what_and_where(tmp_path, found):
    path = tmp_path / "bad.json"
    path.write_text(BROKEN[found])
    with pytest.raises(DataError, match=found if found != "empty lines" else "an empty file") as caught:
        load_rows(str(path))
    assert str(path) in caught.value.given
    assert caught.value.instead
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.csv", b"prompt,completion\n", "an empty file"),
        ("a.csv", b"prompt,completion\na,b\nc,\n", "a blank cell in column 'completion' on row 2"),
        ("a.jsonl.gz", b"not zipped", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 500, mtime=0)[:-30], "cannot be read"),
        ("a.jsonl", b'{"text": "\xff\xfe"}\n', "no UTF-8"),
        ("a.parquet", b"PAR1 and nothing else", "cannot be read as a table"),
        ("a.txt", b"hello", "a file of unknown kind"),
    ],
)
def test_bad_bytes_are_refused_in_a_sentence(tmp_path, name, content, found):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=found):
        load_rows(str(path))


@pytest.mark.parametrize("source", ["./none.jsonl", "none.csv", "a/b/none.parquet", ""])
def test_a_missing_file_is_no_hub_id(source):
    with pytest.raises(DataError, match="no such file"):
        load_rows(source)


@pytest.mark.parametrize("source", ["nobody/nothing", "nothing-of-that-name", "nobody/nothing:config"])
def test_a_hub_id_without_network_is_a_sentence(source):
    with pytest.raises(DataError, match="no data set of that id could be reached"):
        load_rows(source)


def test_reading_leaves_no_cache_and_prints_nothing(tmp_path, capfd):
    import datasets

    cache = Path(datasets.config.HF_DATASETS_CACHE)
    before = sorted(cache.rglob("*")) if cache.exists() else []
    load_rows(write(tmp_path / "a.jsonl", [{"text": "a"}]))
    assert (sorted(cache.rglob("*")) if cache.exists() else []) == before
    assert capfd.readouterr() == ("", "")
    assert datasets.is_progress_bar_enabled()


@pytest.mark.parametrize("late", [{"note": "n"}, {"input": "more"}, {"output": "words"}], ids=str)
def test_rows_may_differ_after_the_first_ten_megabytes(tmp_path, late):
    common = {"instruction": "x" * 1000, "input": None, "output": 7}
    records = [common] * 12_000 + [common | late]
    rows = load_rows(write(tmp_path / "a.jsonl", records))
    assert len(rows) == 12_001
    assert rows.rows[0].turns[1].content == "7"
    assert rows.rows[-1].turns[0].content.endswith(late.get("input", "x"))
    assert rows.rows[-1].turns[1].content == late.get("output", "7")
    sliced = load_rows(write(tmp_path / "a.jsonl", records), split="train[-2:]")
    assert sliced.rows[1].turns == rows.rows[-1].turns


def test_real_files_have_the_rows_that_their_card_counts(shared):
    counted = {"alpaca_eval": (2000, "alpaca"), "gsm8k_eval": (660, "prompt"), "sst2_eval": (872, "label")}
    for name, (n, form) in counted.items():
        rows = load_rows(str(shared(f"data/{name}.jsonl.gz")))
        assert (len(rows), rows.form) == (n, form)


def test_a_turn_hands_a_template_all_that_it_carries():
    called = [{"type": "function", "function": {"name": "weather", "arguments": "{}"}}]
    turn = Turn(role="assistant", content="", extras={"tool_calls": called, "content": None})
    assert turn.message() == {"role": "assistant", "content": None, "tool_calls": called}
    assert user("a").message() == {"role": "user", "content": "a"}


def test_the_digest_sees_what_a_row_carries_and_stays_where_it_carries_nothing():
    row = Row(turns=(user("a"), assistant("b")), source_row=0)
    others = [
        Row(turns=(user("a"), Turn(role="assistant", content="b", counted=False)), source_row=0),
        Row(turns=(user("a"), Turn(role="assistant", content="b", extras={"name": "c"})), source_row=0),
        Row(turns=(Turn(role="user", content="a", extras={"name": "c"}), assistant("b")), source_row=0),
        Row(turns=row.turns, tools=({"name": "c"},), source_row=0),
        Row(turns=row.turns, template_options={"name": "c"}, source_row=0),
    ]
    assert rows_digest([row]) == "223a11a1eccdb59b"
    assert len({rows_digest([one]) for one in [row, *others]}) == 6
