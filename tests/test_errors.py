"""What a stranger wrote reaches no terminal as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import loratlas
from loratlas.errors import SettingsError, printable, python_spelling


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, größe, 日本, 🙂", "plain text, größe, 日本, 🙂"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("two\nlines\r\t", "two\\nlines\\r\\t"),
        ("abc\u202edcb\u2066", "abc\\u202edcb\\u2066"),
        ("half \ud83d", "half \\ud83d"),
        ("\x9b31m", "\\x9b31m"),
    ],
)
def test_what_a_terminal_would_obey_is_made_visible(text, shown):
    assert printable(text) == shown


def test_a_long_text_is_cut_before_it_is_read():
    assert printable("a" * 201) == "a" * 200 + "…"
    assert printable("a" * 200) == "a" * 200
    assert len(printable("\x1b" * 10**7)) == 801


@given(st.text(alphabet=st.characters(), max_size=40))
def test_nothing_unprintable_is_left(text):
    shown = printable(text)
    assert shown.isprintable()
    shown.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("--budget params=3", "budget='params=3'"),
        ("the same command with --resume to go on", "the same command with resume to go on"),
        ("--placement and --from together", "placement and adapter together"),
        (
            "rows (--map text=COLUMN --map label=COLUMN)",
            "rows (columns={'text': 'COLUMN', 'label': 'COLUMN'})",
        ),
        ("--dtype bfloat16, --head 10%, --base MODEL", "dtype='bfloat16', head='10%', base=MODEL"),
        ("loratlas export run --for peft, then that", "loratlas export run --for peft, then that"),
        ("what `loratlas eval --out` wrote", "what `loratlas eval --out` wrote"),
        ("no option--at all", "no option--at all"),
    ],
)
def test_options_are_arguments_in_python(text, said):
    assert python_spelling(text) == said


def test_a_python_caller_reads_arguments_and_a_terminal_options():
    with pytest.raises(SettingsError, match="Given: stride without window") as caught:
        loratlas.evaluate("demo:llama-mini", [{"text": "a"}], stride=4)
    assert caught.value.given == "--stride without --window"
    assert caught.value.to_json()["error"]["instead"] == "--window"


def test_an_option_of_another_form_is_spelled_too():
    assert python_spelling("--map NAME, or other rows") == "columns=NAME, or other rows"
    assert python_spelling("--map") == "columns"
