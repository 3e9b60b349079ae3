"""Every cell comes back as it was written, through every format; where it cannot, a sentence says so with the row.

Each test prints how many cells it has compared.
"""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loratlas.data.load_rows import load_rows
from loratlas.errors import DataError

CELLS = [
    *(
        "02108",
        "007",
        "1",
        "-1",
        "+1",
        "0",
        "-0",
        "1.10",
        "2.50",
        "1.0",
        "1e5",
        "1E5",
        ".5",
        "5.",
        "0x10",
        "0b1",
    ),
    *("1_000", "1,000", "1 000", "12345678901234567890123", "0.30000000000000004", "1e400", "١٢", "½", "²"),
    *("true", "True", "TRUE", "false", "False", "yes", "no", "on", "off", "t", "f", "y", "n"),
    *(
        "NA",
        "N/A",
        "n/a",
        "nan",
        "NaN",
        "-nan",
        "None",
        "none",
        "null",
        "NULL",
        "Null",
        "nil",
        "#N/A",
        "<NA>",
        "NaT",
    ),
    *("inf", "-inf", "Infinity", "-Infinity", "undefined", "missing", "?", "-", "--", ".", "..."),
    *("2020-01-02", "2020-01-02T03:04:05Z", "01/02/2020", "12:30", "1:2:3", "2020", "P1D", "3 days", "Jan 2"),
    *("5%", "$5", "€5", "1st", "v1.10", "1.10.0", "192.168.0.1", "+49 30", "978-3-16", "1/2", "1:1", "1-2"),
    *(" lead", "trail ", "  both  ", "\ttab\t", "a\tb", "a  b", "\u00a0", "\u3000x", "\u2028x", "\u2029"),
    *(
        "a,b",
        ",",
        ",,",
        "a;b",
        "a|b",
        '"',
        '""',
        'a"b',
        '"a"',
        "'a'",
        "it's",
        "\\",
        "\\n",
        "a\\",
        "\\u0041",
        "\\x00",
    ),
    *(
        "a\nb",
        "a\r\nb",
        "a\rb",
        "\na",
        "a\n",
        "\n\n",
        "a\n\nb",
        'a,\n"b"',
        "#comment",
        "# a",
        "=1+1",
        "@x",
        "+a",
    ),
    *(
        "é",
        "e\u0301",
        "ﬁ",
        "ß",
        "ẞ",
        "İ",
        "日本",
        "العربية",
        "\u202eabc",
        "\u200b",
        "a\u200db",
        "👩‍👩‍👧",
        "🙂",
        "\ufeffa",
    ),
    *("\x00", "a\x00b", "\x01", "\x07", "\x1b[31mred", "\x7f", "\x85", "\ufffd", "\uffff", "\U0010ffff"),
    *("[1]", "[]", "{}", '{"a": 1}', "[[", "}", "<b>", "&amp;", "{{x}}", "{% x %}", "${HOME}", "%s", "{0}"),
    *(
        "<|endoftext|>",
        "<s>",
        "[INST]",
        "assistant",
        "x" * 200_000,
        "ab\n" * 60_000,
        '"' * 5_000,
        "\\" * 5_000,
    ),
]
"""What a reader that guesses would take for something else, lose, or stumble over."""

BLANK = ("", " ", "  ", "\n", "\t")
"""Cells that hold nothing but space: kept where there is a text, as nothing where a field is optional."""


def csv_file(path: Path, records: list[dict[str, str]], **options: Any) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), **options)
    writer.writeheader()
    writer.writerows(records)
    path.write_bytes(text.getvalue().encode("utf-8"))
    return path


def json_file(path: Path, records: list[dict[str, Any]], **options: Any) -> Path:
    path.write_text(json.dumps(records, **options), encoding="utf-8", newline="")
    return path


def jsonl_file(path: Path, records: list[dict[str, Any]], *, end: str = "\n", **options: Any) -> Path:
    data = "".join(json.dumps(record, **options) + end for record in records).encode("utf-8")
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def parquet_file(path: Path, records: list[dict[str, str]], kind: Any) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    columns = {name: pa.array([record[name] for record in records]).cast(kind) for name in records[0]}
    parquet.write_table(pa.table(columns), path)
    return path


def writers() -> dict[str, Callable[[Path, list[dict[str, str]]], Any]]:
    import datasets
    import pyarrow as pa

    def bom(folder: Path, records: list[dict[str, str]]) -> Path:
        path = csv_file(folder / "bom.csv", records)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        return path

    def zipped(folder: Path, records: list[dict[str, str]]) -> Path:
        path = folder / "a.csv.gz"
        path.write_bytes(gzip.compress(csv_file(folder / "a.csv", records).read_bytes()))
        return path

    return {
        "csv": lambda folder, rows: csv_file(folder / "a.csv", rows),
        "csv, all quoted": lambda folder, rows: csv_file(folder / "q.csv", rows, quoting=csv.QUOTE_ALL),
        "csv, bare line feeds": lambda folder, rows: csv_file(
            folder / "n.csv", rows, lineterminator="\n", quoting=csv.QUOTE_ALL
        ),
        "csv with a byte order mark": bom,
        "csv.gz": zipped,
        "json": lambda folder, rows: json_file(folder / "a.json", rows),
        "json, indented": lambda folder, rows: json_file(folder / "i.json", rows, indent=2),
        "json, raw unicode": lambda folder, rows: json_file(folder / "u.json", rows, ensure_ascii=False),
        "jsonl": lambda folder, rows: jsonl_file(folder / "a.jsonl", rows),
        "jsonl, raw unicode": lambda folder, rows: jsonl_file(folder / "u.jsonl", rows, ensure_ascii=False),
        "jsonl, CRLF": lambda folder, rows: jsonl_file(folder / "c.jsonl", rows, end="\r\n"),
        "jsonl, dense": lambda folder, rows: jsonl_file(folder / "d.jsonl", rows, separators=(",", ":")),
        "jsonl.gz": lambda folder, rows: jsonl_file(folder / "a.jsonl.gz", rows),
        "parquet": lambda folder, rows: parquet_file(folder / "a.parquet", rows, pa.string()),
        "parquet, large": lambda folder, rows: parquet_file(folder / "l.parquet", rows, pa.large_string()),
        "parquet, dictionary": lambda folder, rows: parquet_file(
            folder / "d.parquet", rows, pa.dictionary(pa.int32(), pa.string())
        ),
        "parquet, bytes": lambda folder, rows: parquet_file(folder / "b.parquet", rows, pa.binary()),
        "a list of dicts": lambda folder, rows: rows,
        "a datasets.Dataset": lambda folder, rows: datasets.Dataset.from_list(rows),
        "a pyarrow.Table": lambda folder, rows: pa.Table.from_pylist(rows),
    }


FIELDS = {
    "prompt": lambda cell: {"prompt": cell, "completion": "end"},
    "completion": lambda cell: {"prompt": "begin", "completion": cell},
    "instruction": lambda cell: {"instruction": cell, "output": "end"},
    "output": lambda cell: {"instruction": "begin", "output": cell},
    "input": lambda cell: {"instruction": "begin", "input": cell, "output": "end"},
    "system": lambda cell: {"system": cell, "instruction": "begin", "output": "end"},
    "text": lambda cell: {"text": cell},
    "text_pair": lambda cell: {"text": "one", "text_pair": cell, "label": "word"},
    "label": lambda cell: {"text": "one", "label": cell},
}


def read_cell(row: Any, field: str) -> Any:
    """The cell of a field, from what became of it."""
    texts = {turn.role: turn.content for turn in row.turns}
    if field == "input":
        return texts["user"].removeprefix("begin\n\n")
    if field in ("label", "text_pair"):
        return row.label if field == "label" else row.texts[1]
    return texts[
        {"system": "system", "text": "text"}.get(field)
        or ("user" if field in ("prompt", "instruction") else "assistant")
    ]


@pytest.mark.parametrize("field", FIELDS)
def test_every_cell_comes_back_through_every_format(tmp_path, field):
    compared = 0
    cells = [cell for cell in CELLS if field not in ("label", "input", "system") or cell.strip()]
    records = [FIELDS[field](cell) for cell in cells]
    for name, write in writers().items():
        rows = load_rows(write(tmp_path, records))
        assert len(rows) == len(cells), name
        for cell, row in zip(cells, rows.rows, strict=True):
            assert read_cell(row, field) == cell, (name, cell)
            compared += 1
    print(f"{field}: {compared:,} cells through {len(writers())} formats")
    assert compared >= 20 * 150


@settings(max_examples=60, deadline=None)
@given(
    cells=st.lists(
        st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
        | st.sampled_from(['"', "\r", "\n", "\r\n", ",", "\x00", "\ufeff", "\\", "1.10"]),
        min_size=1,
        max_size=6,
    )
)
def test_any_text_comes_back(tmp_path_factory, cells):
    folder = tmp_path_factory.mktemp("any")
    records = [{"prompt": cell, "completion": cell[::-1]} for cell in cells]
    for name, write in writers().items():
        rows = load_rows(write(folder, records))
        assert [row.turns[0].content for row in rows.rows] == cells, name
        assert [row.turns[1].content for row in rows.rows] == [cell[::-1] for cell in cells], name


LITERALS = [
    *(
        "1",
        "0",
        "-1",
        "-0",
        "1.10",
        "1.0",
        "2.50",
        "1e5",
        "1E5",
        "1e+5",
        "1E-07",
        "-0.0",
        "0.30000000000000004",
    ),
    *(
        "12345678901234567890123456789",
        "0.1234567890123456789012345",
        "1e400",
        "-1e400",
        "1e-400",
        "9" * 5000,
    ),
    *("true", "false"),
]


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_numbers_of_json_where_text_belongs_keep_their_digits(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    lines = [f'{{"prompt": {each}, "completion": "x"}}' for each in LITERALS]
    path.write_text("\n".join(lines) if suffix == ".jsonl" else f"[{','.join(lines)}]")
    rows = load_rows(path)
    assert [row.turns[0].content for row in rows.rows] == LITERALS
    print(f"{len(LITERALS)} literals as {suffix}")


TYPED: list[tuple[str, Any, Any]] = [
    ("int8", -5, "-5"),
    ("uint64", 2**64 - 1, "18446744073709551615"),
    ("float32", 0.1, "0.1"),
    ("float64", 0.1, "0.1"),
    ("float16", 0.1, "0.1"),
    ("float64", 1.0, "1.0"),
    ("float64", 1e300, "1e+300"),
    ("float64", float("nan"), "NaN"),
    ("float64", float("-inf"), "-Infinity"),
    ("bool_", True, "true"),
    ("date32", datetime.date(2020, 1, 2), "2020-01-02"),
    ("date64", datetime.date(2020, 1, 2), "2020-01-02"),
    ("timestamp[s]", datetime.datetime(2020, 1, 2, 3, 4, 5), "2020-01-02T03:04:05"),
    ("timestamp[ns]", datetime.datetime(2020, 1, 2, 3, 4, 5, 120000), "2020-01-02T03:04:05.12"),
    ("time32[s]", datetime.time(3, 4, 5), "03:04:05"),
    ("time64[us]", datetime.time(3, 4, 5, 7), "03:04:05.000007"),
    ("binary", b"gr\xc3\xb6\xc3\x9fe", "größe"),
    ("large_binary", b"a", "a"),
    ("string_view", "a", "a"),
    ("decimal128(10, 2)", decimal.Decimal("1.10"), "1.10"),
    ("decimal128(20, 0)", decimal.Decimal("100"), "100"),
    ("decimal256(40, 5)", decimal.Decimal("-0.00001"), "-0.00001"),
]


def arrow_type(name: str) -> Any:
    import pyarrow as pa

    if "(" in name:
        kind, _, numbers = name.partition("(")
        return getattr(pa, kind)(*map(int, numbers.rstrip(")").split(",")))
    if "[" in name:
        kind, _, unit = name.partition("[")
        return getattr(pa, kind)(unit.rstrip("]"))
    return getattr(pa, name)()


@pytest.mark.parametrize(("name", "value", "text"), TYPED, ids=[f"{name} {text}" for name, _, text in TYPED])
def test_declared_types_have_one_text(tmp_path, name, value, text):
    import numpy as np
    import pyarrow as pa
    from pyarrow import parquet

    kept = np.float16(value) if name == "float16" else value
    table = pa.table({"prompt": pa.array([kept, kept], arrow_type(name)), "completion": ["x", "y"]})
    assert load_rows(table).rows[0].turns[0].content == text
    parquet.write_table(table, tmp_path / "a.parquet")
    assert load_rows(tmp_path / "a.parquet").rows[1].turns[0].content == text


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "a list": (
        "a.jsonl",
        b'{"prompt": "a", "completion": "b"}\n{"prompt": [1, 2], "completion": "b"}\n',
        "row 2",
    ),
    "a dict": (
        "a.jsonl",
        b'{"prompt": "a", "completion": {"a": 1}}\n',
        "'completion' is a dict, not a text on row 1",
    ),
    "a list in an optional field": (
        "a.jsonl",
        b'{"instruction": "a", "input": [1], "output": "b"}\n',
        "'input' is a list, not a text on row 1",
    ),
    "null": ("a.jsonl", b'{"prompt": "a", "completion": null}\n', "missing field 'completion' on row 1"),
    "half a character": (
        "a.jsonl",
        b'{"prompt": "a", "completion": "\\ud83d"}\n',
        "surrogate.*'completion' on row 1",
    ),
    "half a character in a message": (
        "a.jsonl",
        b'{"messages": [{"role": "user", "content": "\\udc00 x"}]}\n',
        "surrogate.*'messages' on row 1",
    ),
    "half a character in a list": (
        "a.json",
        b'[{"text": "a"}, {"text": "\\uD83D"}]',
        "surrogate.*'text' on row 2",
    ),
    "a key twice": (
        "a.jsonl",
        b'{"text": "a", "text": "b"}\n',
        "the key 'text' twice in one object on row 1",
    ),
    "a key twice inside": (
        "a.jsonl",
        b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}\n',
        "the key 'content' twice in one object on row 1",
    ),
    "two objects on a line": ("a.jsonl", b'{"text": "a"}{"text": "b"}\n', "broken JSON on line 1"),
    "a header twice": ("a.csv", b"text,label,text\na,b,c\n", "the header names the column 'text' twice"),
    "a header without a name": ("a.csv", b"text,,label\na,b,c\n", "column 2 of 3 has no name"),
    "a cell too many": ("a.csv", b"text,label\na,b\nc,d,e\n", r"3 cells on row 2 \(line 3\)"),
    "a cell too few": ("a.csv", b"text,label\na,b\nc\n", r"1 cells on row 2 \(line 3\)"),
    "a blank cell": ("a.csv", b"text,label\na,b\n,d\n", "a blank cell in column 'text' on row 2"),
    "a blank line in one column": (
        "a.csv",
        b"text\na\n\nb\n",
        r"a blank cell in column 'text' on row 2 \(line 3\)",
    ),
    "an open quote": ("a.csv", b'text,label\n"a,b\nc,d\n', "broken CSV in row 1"),
    "a carriage return outside quotes": ("a.csv", b"text\na\rb\nc\n", "a carriage return outside of quotes"),
    "text behind a quote": ("a.csv", b'text,label\n"a"b,c\n', "broken CSV in row 1"),
    "bytes that are no UTF-8": ("a.csv", b"text,label\na,b\n\xff,c\n", "no UTF-8"),
    "UTF-16": ("a.csv", "text,label\na,b\n".encode("utf-16"), "no UTF-8"),
    "a fraction as a label": ("a.jsonl", b'{"text": "a", "label": 1.0}\n', "label 1.0 is neither"),
    "a huge label": ("a.jsonl", b'{"text": "a", "label": 123456789012345678901}\n', "is neither"),
    "a negative label of CSV": ("a.csv", b"text,label\na,0\nb,-1\n", "label out of range: -1 on row 2"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_text_is_refused_with_its_row(tmp_path, what):
    name, data, found = REFUSED[what]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=found):
        load_rows(path)


@pytest.mark.parametrize(
    ("kind", "value", "found"),
    [
        ("binary", b"\xff\xfe", "no UTF-8 text in column 'prompt' on row 2"),
        ("duration", datetime.timedelta(1), "column 'prompt' holds duration"),
        ("list", [1], "field 'prompt' is a|'prompt' is no object"),
        ("struct", {"a": 1}, "field 'prompt' is a dict"),
    ],
)
def test_types_without_a_text_are_refused(kind, value, found):
    import pyarrow as pa

    types = {
        "binary": pa.binary(),
        "duration": pa.duration("s"),
        "list": pa.list_(pa.int64()),
        "struct": pa.struct([("a", pa.int64())]),
    }
    good = {"binary": b"a"}.get(kind, value)
    table = pa.table({"prompt": pa.array([good, value], types[kind]), "completion": ["x", "y"]})
    with pytest.raises(DataError, match=found):
        load_rows(table)


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["007", "010"], ["007", "010"]),
        (["0", "1"], [0, 1]),
        (["1", "2", "10"], [1, 2, 10]),
        (["0", "1", "x"], ["0", "1", "x"]),
        (["00", "1"], ["00", "1"]),
        (["1.0", "0.0"], ["1.0", "0.0"]),
        (["NA", "FR"], ["NA", "FR"]),
        ([" yes", "yes"], [" yes", "yes"]),
        (["true", "True"], ["true", "True"]),
    ],
)
def test_labels_of_csv_keep_their_spelling(tmp_path, cells, labels):
    path = csv_file(tmp_path / "a.csv", [{"text": "a", "label": cell} for cell in cells])
    rows = load_rows(path)
    assert [row.label for row in rows.rows] == labels
    assert [row.turns[1].content for row in rows.rows] == cells


@pytest.mark.parametrize("cell", BLANK)
def test_space_is_text_where_text_belongs_and_nothing_where_it_may_be_left_out(tmp_path, cell):
    rows = load_rows(jsonl_file(tmp_path / "a.jsonl", [{"prompt": cell, "completion": cell}]))
    assert [turn.content for turn in rows.rows[0].turns] == [cell, cell]
    alpaca = [{"instruction": "a", "input": cell, "system": cell, "output": "b"}]
    for path in (jsonl_file(tmp_path / "b.jsonl", alpaca), csv_file(tmp_path / "b.csv", alpaca)):
        assert [turn.content for turn in load_rows(path).rows[0].turns] == ["a", "b"]


def test_rows_whose_keys_differ_are_read_whole(tmp_path):
    records: list[dict[str, Any]] = [{"instruction": f"{n}", "output": "b"} for n in range(3000)]
    records[1500]["input"] = "late"
    records[2999] |= {"system": "later", "note": [1, {"x": None}]}
    rows = load_rows(jsonl_file(tmp_path / "a.jsonl", records))
    assert rows.rows[1500].turns[0].content == "1500\n\nlate"
    assert rows.rows[2999].turns[0].content == "later"
    assert rows.remarks == ("columns that form 'alpaca' does not read: note (1 rows)",)
    late = [{"text": "a"}, {"text": "b", "label": "c"}]
    with pytest.raises(DataError, match="missing field 'label' on row 1"):
        load_rows(jsonl_file(tmp_path / "b.jsonl", late))


def test_names_of_a_stranger_are_printed_without_their_escapes(tmp_path):
    evil = "\x1b[2Jx\u202e"
    path = csv_file(tmp_path / "a.csv", [{evil: "a", "other": "b"}])
    with pytest.raises(DataError) as caught:
        load_rows(path)
    assert "\\x1b[2Jx\\u202e" in str(caught.value)
    path = jsonl_file(
        tmp_path / "a.jsonl", [{"text": "a", evil: "b", "label": 1}, {"text": "a", "label": evil}]
    )
    with pytest.raises(DataError) as caught:
        load_rows(path)
    assert "\x1b" not in str(caught.value)
    rows = load_rows(jsonl_file(tmp_path / "b.jsonl", [{"text": "a", evil: "b"}]))
    assert "\x1b" not in "".join(rows.remarks)
    assert "\\x1b" in "".join(rows.remarks)
