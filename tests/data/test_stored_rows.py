"""Rows lie in files: any row can be asked for, memory stays where it is, and a file that changes is noticed."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loratlas.data.load_rows import load_rows
from loratlas.data.records import line_files
from loratlas.data.records.check_records import RecordCheck
from loratlas.data.records.line_files import LineFile
from loratlas.data.records.row_forms import RowReader
from loratlas.data.rows import rows_digest
from loratlas.errors import DataError


def jsonl(path, count):
    path.write_text("".join(json.dumps({"text": f"row {n} " + "x" * (n % 40)}) + "\n" for n in range(count)))
    return path


def test_any_row_of_any_block_can_be_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(line_files, "BLOCK", 1000)
    rows = load_rows(jsonl(tmp_path / "a.jsonl", 500)).rows
    texts = [f"row {n} " + "x" * (n % 40) for n in range(500)]
    assert [row.turns[0].content for row in rows] == texts
    assert [rows[n].turns[0].content for n in range(499, -1, -7)] == texts[::-7]
    assert rows[-1] == rows[499]
    assert [row.source_row for row in rows[10:20:3]] == [10, 13, 16, 19]
    assert rows[:] == rows
    assert rows != rows[1:]
    for outside in (500, -501):
        with pytest.raises(IndexError):
            rows[outside]


@pytest.mark.parametrize("size", [1, 7, 64, 10**6])
def test_blocks_are_whole_lines_however_they_are_cut(tmp_path, monkeypatch, size):
    monkeypatch.setattr(line_files, "BLOCK", size)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n\n{"text": "' + b"b" * 500 + b'"}\r\n{"text": "c"}')
    rows = load_rows(path)
    assert [row.turns[0].content for row in rows.rows] == ["a", "b" * 500, "c"]
    path.write_bytes(path.read_bytes() + b'\n\n{"text": ')
    with pytest.raises(DataError, match="broken JSON on line 6"):
        load_rows(path)


@pytest.mark.parametrize("size", [3, 50, 10**6])
def test_a_list_is_read_in_stretches(tmp_path, monkeypatch, size):
    monkeypatch.setattr(line_files, "BLOCK", size)
    records = [{"text": f"ä{n}\n" + "[" * n, "more": {"a": [1, {"b": "]"}]}} for n in range(60)]
    path = tmp_path / "a.json"
    for options in ({}, {"indent": 1}, {"ensure_ascii": False}):
        path.write_text(json.dumps(records, **options), encoding="utf-8")
        rows = load_rows(path)
        assert [row.turns[0].content for row in rows.rows] == [record["text"] for record in records]
    text = json.dumps(records, indent=1)
    for broken, found in ((text[:-2], "broken JSON on line"), (text + "x", "text after the end of the list")):
        path.write_text(broken)
        with pytest.raises(DataError, match=found):
            load_rows(path)


def test_a_file_that_changes_while_it_is_in_use_is_refused(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", 20)
    rows = load_rows(path).rows
    path.write_text('{"text": "another"}\n' * 20)
    with pytest.raises(DataError, match="the file was changed while its rows were in use"):
        rows[3]


def test_a_file_that_is_replaced_stays_as_it_was_read(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", 20)
    rows = load_rows(path).rows
    jsonl(tmp_path / "b.jsonl", 3).replace(path)
    assert rows[19].turns[0].content.startswith("row 19")


def test_the_digest_is_that_of_the_rows(tmp_path):
    rows = load_rows(jsonl(tmp_path / "a.jsonl", 50))
    assert rows.digest == rows_digest(tuple(rows.rows)) == load_rows(rows).digest


def test_limits_read_no_further(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", 30)
    path.write_text(path.read_text() + "broken\n")
    assert len(load_rows(path, limit=30)) == 30
    with pytest.raises(DataError, match="line 31"):
        load_rows(path, limit=31)
    assert len(load_rows(load_rows(path, limit=30), limit=4)) == 4


def test_memory_does_not_grow_with_the_rows(tmp_path):
    """Half a million rows, 130 MB of text, are read and gone through within 60 MB."""
    path = tmp_path / "a.jsonl"
    line = json.dumps({"prompt": "p" * 120, "completion": "c" * 100}) + "\n"
    with path.open("w") as file:
        for _ in range(50):
            file.write(line * 10_000)
    script = """
        import resource, sys
        from loratlas.data.load_rows import load_rows
        load_rows([{"prompt": "a", "completion": "b"}])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        rows = load_rows(sys.argv[1])
        assert len(rows) == 500_000
        assert sum(1 for _ in rows.rows[::100]) == 5_000
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 60


SCALARS = (
    st.text(alphabet=st.characters(exclude_categories=[]), max_size=4)
    | st.sampled_from(["", " ", "role", "content", "prompt", "1"])
    | st.integers(-3, 3)
    | st.floats()
    | st.booleans()
    | st.none()
    | st.lists(st.integers(0, 1), max_size=2)
)
MESSAGE = st.dictionaries(
    st.sampled_from(["role", "content", "weight", "from", "value", "name"]),
    st.sampled_from(["user", "assistant", "tool", "human", "b", "", None, 0, 1, True]),
    max_size=4,
) | st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": SCALARS})
FIELDS = {
    "prompt": ("prompt", "completion", "system", "tools", "note"),
    "label": ("text", "label", "text_pair", "note"),
    "messages": ("messages", "system", "note"),
    "alpaca": ("instruction", "output", "input", "history"),
}
GOOD = {
    "prompt": {"prompt": "a", "completion": "b", "system": "c"},
    "label": {"text": "a", "label": 0},
    "messages": {"messages": [{"role": "user", "content": "a"}]},
    "alpaca": {"instruction": "a", "output": "b", "input": "c"},
}


@settings(max_examples=400, deadline=None)
@given(data=st.data(), form=st.sampled_from(sorted(FIELDS)), ascii_only=st.booleans())
def test_the_quick_look_says_what_the_slow_one_says(data, form, ascii_only):
    """Whatever the block: the same refusal or the same columns, labels and rows, with and without the quick look."""
    value = SCALARS | st.lists(MESSAGE, max_size=3)
    record = st.dictionaries(st.sampled_from(FIELDS[form]), value, max_size=5).map(
        lambda own: GOOD[form] | own
    )
    records = data.draw(st.lists(record | st.just(GOOD[form]), min_size=1, max_size=4))
    separators = data.draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    ends = data.draw(st.sampled_from(["\n", "\r\n", "\n\n", " "]))
    text = ends.join(json.dumps(one, ensure_ascii=ascii_only, separators=separators) for one in records)
    try:
        block = text.encode("utf-8")
    except UnicodeEncodeError:
        return
    outcomes = []
    for quick in (True, False):
        columns = {name: name for name in (*GOOD[form], "text_pair", "tools", "history")}
        columns = {name: column for name, column in columns.items() if name in FIELDS[form]}
        if form == "label" and not all("text_pair" in one for one in records):
            columns.pop("text_pair")
        check = RecordCheck(RowReader(form=form, columns=columns, source="s"))
        first = GOOD[form] | ({"text_pair": "x"} if "text_pair" in columns else {}) | {"note": 1}
        for chunk in (json.dumps(first).encode() + b"\n", block):
            file = LineFile.written([chunk], "s", lines_are_rows=True)
            if not quick:
                check._quick = None
            try:
                for each in file.blocks():
                    check.look_over(each)
            except DataError as error:
                outcomes.append(str(error))
                break
        else:
            seen = {name: count for name, count in check.columns.items() if count}
            outcomes.append((seen, check.labels, check.label_kinds, check.rows, dict(check.unknown)))
    assert outcomes[0] == outcomes[1]


def test_the_quick_look_is_taken_where_it_can_be(tmp_path, monkeypatch):
    """Plain rows of every form go through it, and rows that only look plain do not."""
    monkeypatch.setattr(line_files, "BLOCK", 2000)
    slow: list[int] = []
    take = RecordCheck._take
    monkeypatch.setattr(
        RecordCheck, "_take", lambda self, record, index: slow.append(index) or take(self, record, index)
    )
    for record in GOOD.values():
        slow.clear()
        path = tmp_path / "a.jsonl"
        path.write_text(json.dumps(record | {"id": 1}) + "\n" + (json.dumps(record) + "\n") * 500)
        assert len(load_rows(path)) == 501
        assert len(slow) < 100, record


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (
            b'{"prompt": "a", "completion": "b", "prompt": "c"}',
            "the key 'prompt' twice in one object on row 31",
        ),
        (b'{"prompt": "a", "completion": "b", "id": "\xff"}', "no UTF-8 on line 31"),
        (b'{"prompt": "a", "completion": "b"} {"prompt": "a", "completion": "b"}', "broken JSON on line 31"),
        (b'{"prompt": "a", "completion": "\\ud800"}', "surrogate.*'completion' on row 31"),
        (b'{"prompt": "a", "completion": ' + b"[" * 100_000 + b"}", "JSON nested too deeply on line 31"),
        (
            b'{"prompt": "a", "completion": "b", "id": ' + b"[" * 100_000 + b"}",
            "nested too deeply on line 31",
        ),
        (b"null", "line 31 holds a NoneType, not an object"),
        (b"7", "line 31 holds a number, not an object"),
        (b'{"prompt": "a", "completion": "b\tc"}', "broken JSON on line 31"),
    ],
)
def test_what_comes_late_is_found_all_the_same(tmp_path, monkeypatch, line, found):
    monkeypatch.setattr(line_files, "BLOCK", 400)
    path = tmp_path / "a.jsonl"
    good = b'{"prompt": "a", "completion": "b", "id": "c"}\n'
    path.write_bytes(good * 30 + line + b"\n" + good * 30)
    with pytest.raises(DataError, match=found):
        load_rows(path)
