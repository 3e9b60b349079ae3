"""How much text the counted tokens stand for, whatever the tokenizer does to it."""

from __future__ import annotations

import pytest

from loratlas.data.encode import encode, load_tokenizer
from loratlas.data.rows import Row, Rows, Turn
from loratlas.demo import base_path
from loratlas.errors import DataError
from loratlas.loss_audit.text_units import texts_of

ANSWERS = ["Grüß Gott, alle", "two  words", "日本語 です"]


def rows(answers, form="prompt"):
    made = []
    for k, answer in enumerate(answers):
        turns = (
            Turn(role="user", content=f"Question number {k} is long enough"),
            Turn(role="assistant", content=answer),
        )
        if form == "text":
            turns = (Turn(role="text", content=answer),)
        made.append(Row(turns=turns, source_row=k))
    return Rows(rows=tuple(made), form=form, source="here")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(base_path())


def sizes(texts):
    return [texts.bytes.tolist(), texts.characters.tolist(), texts.words.tolist()]


WANTED = [
    [len(a.encode()) for a in ANSWERS],
    [len(a) for a in ANSWERS],
    [len(a.split()) for a in ANSWERS],
]


def test_answers_without_their_end_token(tokenizer):
    given = rows(ANSWERS)
    assert sizes(texts_of(encode(given, tokenizer, max_length=200), given, tokenizer)) == WANTED


def test_prompts_cut_leave_answers_whole(tokenizer):
    given = rows(ANSWERS)
    longest = max(int(e.labelled.sum()) for e in encode(given, tokenizer, max_length=200).examples)
    encoded = encode(given, tokenizer, max_length=longest + 2)
    assert encoded.report.cut
    assert sizes(texts_of(encoded, given, tokenizer)) == WANTED


def test_text_that_lost_its_end_is_what_is_left(tokenizer):
    given = rows(["one two three four five six seven eight nine ten", "short"], form="text")
    encoded = encode(given, tokenizer, max_length=4)
    result = texts_of(encoded, given, tokenizer)
    left = tokenizer.decode(encoded.examples[0].input_ids)
    assert result.bytes.tolist() == [len(left.encode()), len("short")]


def test_everything_counted(tokenizer):
    given = rows(["an answer"])
    result = texts_of(encode(given, tokenizer, max_length=200, loss="all"), given, tokenizer)
    whole = "Question number 0 is long enough\n\nAnswer:\nan answer"
    assert result.characters.tolist() == [len(whole)]


def test_rows_of_something_else(tokenizer):
    encoded = encode(rows(ANSWERS), tokenizer, max_length=200)
    with pytest.raises(DataError, match="1 rows to count the text of"):
        texts_of(encoded, rows(ANSWERS[:1]), tokenizer)
