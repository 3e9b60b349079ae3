"""What a stranger wrote reaches no terminal as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratlas.errors import printable


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
